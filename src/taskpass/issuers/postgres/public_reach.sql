-- What every login may do through PUBLIC and no lease may inherit: (what, schema or empty, which, SQL that closes it).
-- A row with a schema counts only where the schema is open to PUBLIC or gets opened by a lease; the caller decides.
-- What the system itself grants is compared with pg_init_privs, so a right that somebody added there is seen too.
WITH routines AS (
    SELECT p.oid, n.nspname, p.prosecdef, p.prolang,
           pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) AS named
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid >= 16384
      AND (p.proacl IS NULL OR EXISTS (SELECT FROM pg_catalog.aclexplode(p.proacl) a WHERE a.grantee = 0))
), outside AS (
    SELECT d.objid
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.refclassid = 'pg_catalog.pg_extension'::regclass
      AND d.deptype = 'e'
      AND e.extname IN ('aws_lambda', 'aws_s3', 'azure_storage', 'dblink', 'http', 'pg_background', 'pg_cron', 'pg_curl',
                        'pg_net', 'pldbgapi')
), opened AS (
    SELECT n.nspname, c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname) AS named,
           pg_catalog.string_agg(DISTINCT a.privilege_type, ', ') AS verbs
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_(toast|temp)'
    CROSS JOIN LATERAL (
        SELECT x.privilege_type FROM pg_catalog.aclexplode(c.relacl) x WHERE x.grantee = 0
        UNION ALL
        SELECT x.privilege_type FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) x
        WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL AND NOT t.attisdropped AND x.grantee = 0
    ) a
    WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    GROUP BY 1, 2, 3
    UNION ALL
    -- Catalogues that initdb keeps from PUBLIC, for example pg_authid.
    SELECT '', c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname), 'SELECT'
    FROM pg_catalog.pg_init_privs i
    JOIN pg_catalog.pg_class c ON c.oid = i.objoid AND c.oid < 16384
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE i.classoid = 'pg_catalog.pg_class'::regclass AND i.objsubid = 0
      AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(i.initprivs) x WHERE x.grantee = 0 AND x.privilege_type = 'SELECT')
      AND EXISTS (SELECT FROM pg_catalog.aclexplode(c.relacl) x WHERE x.grantee = 0 AND x.privilege_type = 'SELECT')
)
SELECT 'security definer', r.nspname::text, r.named,
       pg_catalog.format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC;', r.named)
FROM routines r WHERE r.prosecdef
UNION ALL
SELECT 'outside', r.nspname, r.named, pg_catalog.format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC;', r.named)
FROM routines r JOIN pg_catalog.pg_language l ON l.oid = r.prolang
WHERE NOT r.prosecdef
  AND (r.oid IN (SELECT o.objid FROM outside o)
       OR (NOT l.lanpltrusted AND l.lanname NOT IN ('internal', 'c'))
       OR (l.lanname = 'c' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::regclass
              AND d.objid = r.oid AND d.deptype = 'e')))
UNION ALL
SELECT 'outside', '', f.named, pg_catalog.format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC;', f.named)
FROM (SELECT p.oid, p.proacl, p.proowner,
             pg_catalog.format('pg_catalog.%I(%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) AS named
      FROM pg_catalog.pg_init_privs i JOIN pg_catalog.pg_proc p ON p.oid = i.objoid
      WHERE i.classoid = 'pg_catalog.pg_proc'::regclass AND p.oid < 16384
        AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(i.initprivs) x WHERE x.grantee = 0)) f
WHERE EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner))) a
              WHERE a.grantee = 0)
UNION ALL
SELECT 'table', o.nspname, pg_catalog.format('%s (%s)', o.named, o.verbs),
       pg_catalog.format('REVOKE %s ON %s %s FROM PUBLIC;', o.verbs, CASE o.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, o.named)
FROM opened o
UNION ALL
SELECT 'create', '', pg_catalog.format('schema %I', n.nspname),
       pg_catalog.format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC;', n.nspname)
FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
WHERE a.grantee = 0 AND a.privilege_type = 'CREATE' AND n.nspname !~ '^pg_(toast|temp)'
UNION ALL
SELECT 'create', '', pg_catalog.format('database %I', d.datname),
       pg_catalog.format('REVOKE CREATE ON DATABASE %I FROM PUBLIC;', d.datname)
FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a
WHERE d.datname = pg_catalog.current_database() AND a.grantee = 0 AND a.privilege_type = 'CREATE'
UNION ALL
SELECT 'outside', '', pg_catalog.format('foreign server %I', s.srvname),
       pg_catalog.format('REVOKE USAGE ON FOREIGN SERVER %I FROM PUBLIC;', s.srvname)
FROM pg_catalog.pg_foreign_server s, pg_catalog.aclexplode(s.srvacl) a WHERE a.grantee = 0
UNION ALL
SELECT 'outside', '', pg_catalog.format('foreign data wrapper %I', w.fdwname),
       pg_catalog.format('REVOKE USAGE ON FOREIGN DATA WRAPPER %I FROM PUBLIC;', w.fdwname)
FROM pg_catalog.pg_foreign_data_wrapper w, pg_catalog.aclexplode(w.fdwacl) a WHERE a.grantee = 0
UNION ALL
SELECT DISTINCT 'parameter', '', 'parameter ' || p.parname,
       pg_catalog.format('REVOKE ALL ON PARAMETER %s FROM PUBLIC;', p.parname)
FROM pg_catalog.pg_parameter_acl p, pg_catalog.aclexplode(p.paracl) a WHERE a.grantee = 0
UNION ALL
SELECT 'large objects', '', 'lo_compat_privileges is on',
       'ALTER SYSTEM SET lo_compat_privileges = off; SELECT pg_reload_conf();'
WHERE pg_catalog.current_setting('lo_compat_privileges') = 'on'
ORDER BY 1, 2, 3
