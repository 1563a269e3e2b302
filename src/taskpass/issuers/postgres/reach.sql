-- What taskpass_kit may pass on: the verbs that the ceiling allows on its tables, USAGE of the sequences that belong to
-- columns of tables it may insert into or update, USAGE of the schemas, and the same for what is made later where the
-- ceiling has a wildcard. It gets no ownership and no other right.
DO $do$ DECLARE
    item record;
    owned record;
BEGIN
    FOR item IN SELECT DISTINCT c.oid, n.nspname, c.relname, l.verb FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  JOIN taskpass.ceiling l ON n.nspname LIKE taskpass.pattern(l.schema_pattern) ESCAPE '!'
                                         AND c.relname LIKE taskpass.pattern(l.object_pattern) ESCAPE '!'
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                   AND n.nspname NOT IN ('information_schema', 'taskpass')
                 GROUP BY c.oid, n.nspname, c.relname, l.verb HAVING min(l.longest_seconds) > 0 ORDER BY 2, 3, 4 LOOP
        BEGIN
            EXECUTE format('GRANT %s ON TABLE %I.%I TO taskpass_kit WITH GRANT OPTION', item.verb, item.nspname, item.relname);
            FOR owned IN SELECT s.relname FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                          WHERE item.verb IN ('INSERT', 'UPDATE') AND d.classid = 'pg_class'::regclass
                            AND d.refclassid = 'pg_class'::regclass AND d.refobjid = item.oid AND d.refobjsubid > 0
                            AND d.deptype IN ('a', 'i') LOOP
                EXECUTE format('GRANT USAGE ON SEQUENCE %I.%I TO taskpass_kit WITH GRANT OPTION', item.nspname, owned.relname);
            END LOOP;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'taskpass: not allowed to grant % on %.%', item.verb, item.nspname, item.relname;
        END;
    END LOOP;
    FOR item IN SELECT n.nspname, array_agg(DISTINCT l.verb) FILTER (WHERE l.object_pattern LIKE '%*%') AS follows,
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
        FOR number IN 1 .. CASE WHEN item.follows IS NOT NULL THEN cardinality(item.owners) ELSE 0 END LOOP
            BEGIN
                EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT %s ON TABLES TO taskpass_kit'
                               ' WITH GRANT OPTION', item.owners[number], item.nspname, array_to_string(item.follows, ', '));
                IF item.follows && ARRAY['INSERT', 'UPDATE'] THEN
                    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT USAGE ON SEQUENCES TO taskpass_kit'
                                   ' WITH GRANT OPTION', item.owners[number], item.nspname);
                END IF;
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
