-- Taskpass: removes the kit from the current database. Leases must be cleaned first.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
DO $do$ DECLARE
    login name;
    logins name[];
    holder name;
    maker name;
    owned text;
BEGIN
    IF EXISTS (SELECT FROM taskpass.lease WHERE state <> 'cleaned') THEN
        RAISE EXCEPTION 'taskpass: there are leases that are not cleaned' USING HINT = 'taskpass revoke --all';
    END IF;
    IF EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
                  AND d.refobjid = to_regprocedure('taskpass.tenant()')) THEN
        RAISE EXCEPTION 'taskpass: policies of row security use taskpass.tenant()'
            USING HINT = 'drop or change them first: without them their tables may be open to more logins';
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF current_setting('server_version_num')::integer >= 160000 THEN
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        ELSE
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER';
        END IF;
    END IF;
    FOR maker IN SELECT r.rolname FROM pg_roles r WHERE r.rolname ~ '^taskpass_kit_[0-9a-hjkmnp-tv-z]$' LOOP
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT TRUE, SET TRUE', maker);
        END IF;
    END LOOP;
    logins := array(SELECT b.login FROM taskpass.broker b);
    -- As the kit, because it granted what these roles hold.
    PERFORM set_config('role', 'taskpass_kit', true);
    FOREACH holder IN ARRAY array(SELECT m.role FROM taskpass.manifest m JOIN pg_roles r ON r.rolname = m.role) LOOP
        -- DROP OWNED would want a right on the columns of a sequence, which the kit does not have.
        FOREACH owned IN ARRAY array(SELECT c.oid::regclass::text FROM pg_shdepend d JOIN pg_class c ON c.oid = d.objid
                 WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'a' AND d.classid = 'pg_class'::regclass
                   AND d.refobjid = (SELECT oid FROM pg_roles WHERE rolname = holder) AND c.relkind = 'S'
                   AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) LOOP
            EXECUTE format('REVOKE USAGE ON SEQUENCE %s FROM %I', owned, holder);
        END LOOP;
        EXECUTE format('DROP OWNED BY %I', holder);
        EXECUTE format('DROP ROLE %I', holder);
    END LOOP;
    PERFORM set_config('role', 'none', true);
    DROP SCHEMA taskpass CASCADE;
    DROP OWNED BY taskpass_kit;
    FOREACH login IN ARRAY logins LOOP
        BEGIN
            EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), login);
            EXECUTE format('DROP ROLE %I', login);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            RAISE WARNING 'taskpass: % is still used elsewhere and stays', login;
        END;
    END LOOP;
    FOR maker IN SELECT r.rolname FROM pg_roles r WHERE r.rolname ~ '^taskpass_kit_[0-9a-hjkmnp-tv-z]$' LOOP
        BEGIN
            EXECUTE format('DROP ROLE %I', maker);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            RAISE WARNING 'taskpass: % is still used in another database and stays', maker;
        END;
    END LOOP;
    BEGIN
        BEGIN
            REVOKE SET ON PARAMETER temp_file_limit FROM taskpass_kit;
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;  -- it was never passed on then
        END;
        DROP ROLE taskpass_kit;
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        RAISE WARNING 'taskpass: taskpass_kit is still used in another database and stays';
    END;
END $do$;
COMMIT;
