-- What taskpass_kit may pass on: SELECT on the tables that the ceiling allows, USAGE of their schemas, and the same for
-- tables that are made later where the ceiling has a wildcard. It gets no ownership and no other right.
DO $do$ DECLARE
    item record;
BEGIN
    FOR item IN SELECT DISTINCT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  JOIN taskpass.ceiling l ON n.nspname LIKE taskpass.pattern(l.schema_pattern) ESCAPE '!'
                                         AND c.relname LIKE taskpass.pattern(l.object_pattern) ESCAPE '!'
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                   AND n.nspname NOT IN ('information_schema', 'taskpass')
                 GROUP BY n.nspname, c.relname HAVING min(l.longest_seconds) > 0 ORDER BY 1, 2 LOOP
        BEGIN
            EXECUTE format('GRANT SELECT ON TABLE %I.%I TO taskpass_kit WITH GRANT OPTION', item.nspname, item.relname);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'taskpass: not allowed to grant SELECT on %.%', item.nspname, item.relname;
        END;
    END LOOP;
    FOR item IN SELECT n.nspname, bool_or(l.object_pattern LIKE '%*%') AS follows,
                       array(SELECT DISTINCT r.rolname FROM pg_roles r WHERE r.rolname !~ '^pg_' AND r.oid IN (
                           SELECT c.relowner FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
                           UNION SELECT n.nspowner
                           UNION SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()))
                       AS owners
                  FROM pg_namespace n JOIN taskpass.ceiling l ON n.nspname LIKE taskpass.pattern(l.schema_pattern) ESCAPE '!'
                 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'taskpass') AND l.longest_seconds > 0
                 GROUP BY n.oid, n.nspname, n.nspowner LOOP
        BEGIN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO taskpass_kit WITH GRANT OPTION', item.nspname);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'taskpass: not allowed to grant USAGE on schema %', item.nspname;
        END;
        FOR number IN 1 .. CASE WHEN item.follows THEN cardinality(item.owners) ELSE 0 END LOOP
            BEGIN
                EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON TABLES TO taskpass_kit'
                               ' WITH GRANT OPTION', item.owners[number], item.nspname);
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE WARNING 'taskpass: new tables of % in schema % will not follow', item.owners[number], item.nspname;
            END;
        END LOOP;
    END LOOP;
END $do$;

DO $do$ BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE taskpass_kit FROM CURRENT_USER;
    END IF;
END $do$;
COMMIT;
