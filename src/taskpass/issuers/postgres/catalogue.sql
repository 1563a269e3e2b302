-- Everything about names, kinds, reach and PUBLIC that a manifest rests on, as one row of one statement: one snapshot.
-- An ordinary login may run it. Names are compared by the caller, never here. 16384 is the first oid that does not
-- come from initdb, so a smaller one is the system's own.
WITH namespaces AS (
    SELECT n.oid, n.nspname,
           EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a
                   WHERE a.grantee = 0 AND a.privilege_type = 'USAGE') AS open
    FROM pg_catalog.pg_namespace n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
), relations AS (
    SELECT c.oid, c.relkind, n.nspname, c.relname, c.relowner, c.relrowsecurity
    FROM pg_catalog.pg_class c JOIN namespaces n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
), edges AS (
    SELECT i.inhparent AS upper, i.inhrelid AS lower, CASE WHEN c.relispartition THEN 'partition' ELSE 'inheritance' END AS through
    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE c.relkind IN ('r', 'p', 'f')
    UNION
    SELECT r.ev_class, d.refobjid, CASE c.relkind WHEN 'm' THEN 'materialised view' ELSE 'view' END
    FROM relations c
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid AND r.ev_type = '1'
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class
    WHERE c.relkind IN ('v', 'm')
)
SELECT
    (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s),
    db.oid::bigint,
    db.datname::text,
    (SELECT coalesce(json_agg(json_build_array(r.oid::bigint, r.relkind, r.nspname, r.relname,
                                               pg_catalog.pg_get_userbyid(r.relowner), r.relrowsecurity)), '[]')
     FROM relations r),
    (SELECT coalesce(json_agg(json_build_array(e.upper::bigint, e.lower::bigint, e.through)), '[]') FROM edges e),
    ARRAY(SELECT n.nspname::text FROM namespaces n WHERE n.open),
    EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(db.datacl, pg_catalog.acldefault('d', db.datdba))) a
            WHERE a.grantee = 0 AND a.privilege_type = 'TEMPORARY'),
    EXISTS (SELECT FROM pg_catalog.pg_database o,
                        pg_catalog.aclexplode(coalesce(o.datacl, pg_catalog.acldefault('d', o.datdba))) a
            WHERE o.datallowconn AND o.oid <> db.oid AND a.grantee = 0 AND a.privilege_type = 'CONNECT'),
    EXISTS (SELECT FROM pg_catalog.pg_proc p,
                        pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND a.grantee = 0
              AND p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
FROM pg_catalog.pg_database db
WHERE db.datname = pg_catalog.current_database()
