-- What the kit needs and does not have here: rows of (check, severity, message, fix).
WITH kit AS (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = 'taskpass_kit'),
wanted AS (
    SELECT c.oid, n.oid AS schema, n.nspname, c.relname, l.verb
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN taskpass.ceiling l
        ON n.nspname LIKE replace(replace(replace(replace(l.schema_pattern, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') ESCAPE '!'
       AND c.relname LIKE replace(replace(replace(replace(l.object_pattern, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') ESCAPE '!'
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
       AND n.nspname NOT IN ('information_schema', 'taskpass')
     GROUP BY c.oid, n.oid, n.nspname, c.relname, l.verb HAVING min(l.longest_seconds) > 0)
SELECT 'kit_grant', 'warning', format('the kit may not pass on %s on %I.%I', w.verb, w.nspname, w.relname),
       format('GRANT %s ON TABLE %I.%I TO taskpass_kit WITH GRANT OPTION;', w.verb, w.nspname, w.relname)
  FROM wanted w, kit WHERE NOT has_table_privilege(kit.oid, w.oid, w.verb || ' WITH GRANT OPTION')
UNION ALL
SELECT DISTINCT 'kit_grant', 'warning', format('the kit may not pass on USAGE of the sequence %I.%I', w.nspname, s.relname),
       format('GRANT USAGE ON SEQUENCE %I.%I TO taskpass_kit WITH GRANT OPTION;', w.nspname, s.relname)
  FROM wanted w JOIN kit ON w.verb IN ('INSERT', 'UPDATE')
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
       AND d.refobjid = w.oid AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
  JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
 WHERE NOT has_sequence_privilege(kit.oid, s.oid, 'USAGE WITH GRANT OPTION')
UNION ALL
SELECT DISTINCT 'kit_grant', 'warning', format('the kit may not pass on USAGE of schema %I', w.nspname),
       format('GRANT USAGE ON SCHEMA %I TO taskpass_kit WITH GRANT OPTION;', w.nspname)
  FROM wanted w, kit WHERE NOT has_schema_privilege(kit.oid, w.schema, 'USAGE WITH GRANT OPTION')
UNION ALL
SELECT 'kit_grant', 'fatal', 'the kit may not pass on CONNECT to this database',
       format('GRANT CONNECT ON DATABASE %I TO taskpass_kit WITH GRANT OPTION;', current_database())
  FROM kit WHERE NOT has_database_privilege(kit.oid, current_database(), 'CONNECT WITH GRANT OPTION')
UNION ALL
SELECT 'kit_members', 'fatal', format('%s may become %s, and so make any role', m.member::regrole, k.rolname),
       format('REVOKE %s FROM %s;', k.rolname, m.member::regrole)
  FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles k ON k.oid = m.roleid
 WHERE k.rolname ~ '^taskpass_kit(_[0-9a-hjkmnp-tv-z])?$' AND NOT m.admin_option
UNION ALL
SELECT 'broker_login', 'fatal', format('the broker''s login %I has rights of its own', r.rolname),
       format('ALTER ROLE %I NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;', r.rolname)
  FROM pg_catalog.pg_roles r
 WHERE r.rolname ~ '^taskpass_broker_' AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
