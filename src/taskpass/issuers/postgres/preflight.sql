-- What the preflight judges, as one JSON object. An ordinary login may run it; it touches no table of a user.
WITH me AS (SELECT r.* FROM pg_catalog.pg_roles r WHERE r.rolname = session_user),
here AS (SELECT d.oid, d.datname FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
SELECT pg_catalog.json_build_object(
    'version', pg_catalog.current_setting('server_version_num')::int,
    'encoding', pg_catalog.current_setting('server_encoding'),
    'standby', pg_catalog.pg_is_in_recovery(),
    'cluster', (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s),
    'database', here.oid::bigint,
    'login', pg_catalog.quote_ident(me.rolname),
    'attributes', pg_catalog.array_remove(ARRAY[
        CASE WHEN me.rolsuper THEN 'SUPERUSER' END, CASE WHEN me.rolcreaterole THEN 'CREATEROLE' END,
        CASE WHEN me.rolcreatedb THEN 'CREATEDB' END, CASE WHEN me.rolreplication THEN 'REPLICATION' END,
        CASE WHEN me.rolbypassrls THEN 'BYPASSRLS' END], NULL),
    'expires', me.rolvaliduntil IS NOT NULL AND me.rolvaliduntil < 'infinity',
    -- A closing lease's role is lent to the broker for a moment; only its own installation's leases are called that.
    'member_of', ARRAY(
        SELECT m.roleid::regrole::text FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.roleid
        WHERE m.member = me.oid
          AND NOT pg_catalog.starts_with(r.rolname::text, 'tp_' || pg_catalog.split_part(me.rolname::text, '_', 3) || '_')
        ORDER BY 1),
    'owns', ARRAY(
        SELECT pg_catalog.pg_describe_object(s.classid, s.objid, s.objsubid) FROM pg_catalog.pg_shdepend s
        WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid = me.oid AND s.deptype = 'o'
          AND s.dbid IN (0, here.oid) ORDER BY 1 LIMIT 5),
    -- Everything but CONNECT here and what the enrolment gives in the kit's own schema.
    'granted', (
        SELECT coalesce(pg_catalog.json_agg(DISTINCT ARRAY[held.named, held.words]), '[]') FROM (
            SELECT pg_catalog.pg_describe_object(s.classid, s.objid, 0) AS named,
                   CASE s.classid
                       WHEN 'pg_catalog.pg_class'::regclass THEN 'TABLE ' || s.objid::regclass
                       WHEN 'pg_catalog.pg_namespace'::regclass THEN 'SCHEMA ' || s.objid::regnamespace
                       WHEN 'pg_catalog.pg_proc'::regclass THEN 'ROUTINE ' || s.objid::regprocedure
                       WHEN 'pg_catalog.pg_largeobject'::regclass THEN 'LARGE OBJECT ' || s.objid END AS words
            FROM pg_catalog.pg_shdepend s
            LEFT JOIN pg_catalog.pg_class c ON s.classid = 'pg_catalog.pg_class'::regclass AND c.oid = s.objid
            LEFT JOIN pg_catalog.pg_proc p ON s.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = s.objid
            LEFT JOIN pg_catalog.pg_namespace n ON n.oid = coalesce(c.relnamespace, p.pronamespace,
                CASE s.classid WHEN 'pg_catalog.pg_namespace'::regclass THEN s.objid END)
            WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid = me.oid AND s.deptype = 'a'
              AND s.dbid IN (0, here.oid) AND s.classid <> 'pg_catalog.pg_database'::regclass
              AND n.nspname IS DISTINCT FROM 'taskpass'
            ORDER BY 1 LIMIT 5) held),
    'kit_schemas', ARRAY(
        SELECT n.nspname::text FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a
        WHERE a.grantee = pg_catalog.to_regrole('taskpass_kit') AND a.privilege_type = 'USAGE' ORDER BY 1),
    'other_databases', ARRAY(
        SELECT o.datname::text FROM pg_catalog.pg_database o
        WHERE o.datallowconn AND o.oid <> here.oid AND EXISTS (
            SELECT FROM pg_catalog.aclexplode(coalesce(o.datacl, pg_catalog.acldefault('d', o.datdba))) a
            WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT')
        ORDER BY 1),
    'close_other_databases', ARRAY(
        SELECT pg_catalog.format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC;', o.datname)
        FROM pg_catalog.pg_database o
        WHERE o.datallowconn AND o.oid <> here.oid AND EXISTS (
            SELECT FROM pg_catalog.aclexplode(coalesce(o.datacl, pg_catalog.acldefault('d', o.datdba))) a
            WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT')
        ORDER BY o.datname::text),
    'default_privileges', ARRAY(
        SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %s%s REVOKE ALL ON %s FROM PUBLIC;',
                      d.defaclrole::regrole, ' IN SCHEMA ' || d.place::regnamespace,
                      CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' ELSE 'SCHEMAS' END)
        FROM (SELECT x.*, nullif(x.defaclnamespace, 0) AS place FROM pg_catalog.pg_default_acl x) d
        WHERE d.defaclobjtype IN ('r', 'S', 'n')
          AND EXISTS (SELECT FROM pg_catalog.aclexplode(d.defaclacl) a WHERE a.grantee = 0)
        ORDER BY 1),
    'password_encryption', pg_catalog.current_setting('password_encryption'),
    'log_line_prefix', pg_catalog.current_setting('log_line_prefix'),
    'log_connections', pg_catalog.current_setting('log_connections'),
    'log_destination', pg_catalog.current_setting('log_destination'),
    'kit', EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = 'taskpass'))
FROM me, here
