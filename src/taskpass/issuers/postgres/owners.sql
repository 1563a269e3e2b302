-- Lets the kit pass on the owners that taskpass.owner names, and refuses one that a migration must not run as. From 16 on
-- the kit may only pass an owner on and not become it; up to 15 CREATEROLE suffices for that, and nothing is granted.
DO $do$ DECLARE
    item record;
    unfit text;
BEGIN
    FOR item IN SELECT o.role, r.oid FROM taskpass.owner o LEFT JOIN pg_roles r ON r.rolname = o.role ORDER BY o.role LOOP
        unfit := taskpass.unfit_owner(item.oid);
        IF unfit IS NOT NULL THEN
            RAISE EXCEPTION 'taskpass: nobody can migrate as %: the role %', item.role, unfit
                USING HINT = 'separate the owner of the objects from the login of the application';
        END IF;
        IF current_setting('server_version_num')::integer >= 160000 THEN
            BEGIN
                EXECUTE format('GRANT %I TO taskpass_kit WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', item.role);
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE WARNING 'taskpass: not allowed to let migrations run as %', item.role;
            END;
        END IF;
    END LOOP;
END $do$;
