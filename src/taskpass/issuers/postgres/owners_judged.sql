-- For each role in %(owners)s that cannot be migrated as: its name, why, and the SQL that mends it where SQL can: an owner
-- without login, and a login of the application's own that may do with the data what the application does.
WITH wanted AS (SELECT unnest(%(owners)s::text[]) AS named),
spaces AS (
    SELECT DISTINCT w.named, n.nspname FROM wanted w JOIN pg_catalog.pg_roles r ON r.rolname = w.named
      JOIN pg_catalog.pg_class c ON c.relowner = r.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_'
)
SELECT w.named,
       CASE WHEN r.oid IS NULL THEN 'does not exist'
            WHEN r.rolcanlogin THEN 'can log in, so a migration could set its password'
            ELSE 'is SUPERUSER, CREATEROLE, CREATEDB, REPLICATION or BYPASSRLS' END,
       CASE WHEN r.oid IS NULL THEN pg_catalog.format('CREATE ROLE %%I NOLOGIN;', w.named)
            WHEN r.rolcanlogin THEN
                pg_catalog.format('CREATE ROLE %%1$I LOGIN; GRANT CONNECT ON DATABASE %%2$I TO %%1$I;', w.named || '_app', current_database())
                || coalesce((SELECT pg_catalog.string_agg(pg_catalog.format(
                       ' GRANT USAGE ON SCHEMA %%2$I TO %%1$I;'
                       ' GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %%2$I TO %%1$I;'
                       ' GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %%2$I TO %%1$I;'
                       ' ALTER DEFAULT PRIVILEGES FOR ROLE %%3$I IN SCHEMA %%2$I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %%1$I;'
                       ' ALTER DEFAULT PRIVILEGES FOR ROLE %%3$I IN SCHEMA %%2$I GRANT USAGE, SELECT ON SEQUENCES TO %%1$I;',
                       w.named || '_app', s.nspname, w.named), '' ORDER BY s.nspname) FROM spaces s WHERE s.named = w.named), '')
                || pg_catalog.format(' /* when the application logs in as %%1$I: */ ALTER ROLE %%2$I NOLOGIN PASSWORD NULL;',
                                     w.named || '_app', w.named)
            ELSE pg_catalog.format('ALTER ROLE %%I NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;', w.named) END
  FROM wanted w LEFT JOIN pg_catalog.pg_roles r ON r.rolname = w.named
 WHERE r.oid IS NULL OR r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
 ORDER BY w.named
