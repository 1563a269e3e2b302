-- What in this database gives somebody access, or runs code as somebody else, as rows of core.widening.Item:
-- kind, name, detail, counts (a added, c changed, r removed), parent, excuses. An ordinary login may run it.
-- What taskpass_kit grants to leases comes and goes with them and is under the ceiling, so it is left out by its grantor.
WITH kit AS (SELECT coalesce(to_regrole('taskpass_kit')::oid, 0) AS oid),
spaces AS (SELECT n.* FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp)' AND n.nspname <> 'taskpass'),
extension_members AS (SELECT d.classid, d.objid FROM pg_depend d WHERE d.deptype = 'e'),
relations AS (
    SELECT c.*, n.nspname, format('%I.%I', n.nspname, c.relname) AS named FROM pg_class c JOIN spaces n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
), routines AS (
    SELECT p.*, n.nspname, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS named
      FROM pg_proc p JOIN spaces n ON n.oid = p.pronamespace
     WHERE p.oid >= 16384 AND NOT EXISTS (SELECT FROM extension_members e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid)
), acls AS (
    -- class, object, its name, owner, schema, kind in pg_default_acl, rights that count
    SELECT 'relation' AS class, r.oid, r.named, r.relowner AS owner, r.relnamespace AS space,
           CASE r.relkind WHEN 'S' THEN 'S' ELSE 'r' END AS defaults,
           coalesce(r.relacl, acldefault(CASE r.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", r.relowner)) AS acl
      FROM relations r
    UNION ALL SELECT 'column', a.attrelid, format('%s.%I', r.named, a.attname), r.relowner, NULL, NULL, a.attacl
      FROM pg_attribute a JOIN relations r ON r.oid = a.attrelid WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
    UNION ALL SELECT 'routine', p.oid, p.named, p.proowner, p.pronamespace, 'f', coalesce(p.proacl, acldefault('f', p.proowner)) FROM routines p
    UNION ALL SELECT 'system routine', p.oid, p.oid::regprocedure::text, p.proowner, NULL, NULL, p.proacl
      FROM pg_proc p WHERE p.proacl IS NOT NULL AND p.oid < 16384
    UNION ALL SELECT 'schema', n.oid, quote_ident(n.nspname), n.nspowner, NULL, 'n', coalesce(n.nspacl, acldefault('n', n.nspowner)) FROM spaces n
    UNION ALL SELECT 'type', t.oid, t.oid::regtype::text, t.typowner, t.typnamespace, 'T', t.typacl FROM pg_type t WHERE t.typacl IS NOT NULL
    UNION ALL SELECT 'database', d.oid, quote_ident(d.datname), d.datdba, NULL, NULL, coalesce(d.datacl, acldefault('d', d.datdba)) FROM pg_database d
    UNION ALL SELECT 'language', l.oid, quote_ident(l.lanname), l.lanowner, NULL, NULL, coalesce(l.lanacl, acldefault('l', l.lanowner)) FROM pg_language l
    UNION ALL SELECT 'foreign data wrapper', w.oid, quote_ident(w.fdwname), w.fdwowner, NULL, NULL, w.fdwacl FROM pg_foreign_data_wrapper w
    UNION ALL SELECT 'foreign server', s.oid, quote_ident(s.srvname), s.srvowner, NULL, NULL, s.srvacl FROM pg_foreign_server s
    UNION ALL SELECT 'large object', l.oid, l.oid::text, l.lomowner, NULL, NULL, l.lomacl FROM pg_largeobject_metadata l WHERE l.lomacl IS NOT NULL
    UNION ALL SELECT 'tablespace', t.oid, quote_ident(t.spcname), t.spcowner, NULL, NULL, t.spcacl FROM pg_tablespace t
    UNION ALL SELECT 'parameter', p.oid, p.parname, 10, NULL, NULL, p.paracl FROM pg_parameter_acl p
), rights AS (
    SELECT o.class, o.oid, o.named, o.owner, o.space, o.defaults, a.grantor, a.grantee,
           CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS who,
           a.privilege_type || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS verb
      FROM acls o, aclexplode(o.acl) a WHERE a.grantee <> o.owner AND a.grantor <> (SELECT oid FROM kit)
), readable AS (
    -- Relations that somebody besides their owner (and the kit, which is under the ceiling) may read.
    SELECT DISTINCT g.oid FROM rights g WHERE g.class IN ('relation', 'column') AND g.grantee <> (SELECT oid FROM kit)
), given AS (
    SELECT d.oid, d.defaclrole, d.defaclnamespace, d.defaclobjtype,
           CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END AS who,
           a.privilege_type || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS verb
      FROM pg_default_acl d, aclexplode(d.defaclacl) a WHERE a.grantee <> d.defaclrole
)
SELECT 'relation' AS kind, r.oid::text AS name, r.named AS detail, '' AS counts, '' AS parent, '{}'::text[] AS excuses FROM relations r
UNION ALL SELECT 'name', r.named, '', '', '', '{}' FROM relations r
UNION ALL SELECT 'renamed', format('relation %s', r.oid), r.named, 'c', '', '{}' FROM relations r WHERE r.relkind <> 'S'
UNION ALL SELECT 'owner', format('relation %s', r.oid), pg_get_userbyid(r.relowner)::text, 'c', '', '{}' FROM relations r
UNION ALL SELECT 'owner', format('schema %s', n.oid), pg_get_userbyid(n.nspowner)::text, 'c', '', '{}' FROM spaces n
UNION ALL SELECT 'schema', n.oid::text, '', '', '', '{}' FROM spaces n
UNION ALL SELECT 'routine', p.oid::text, '', '', '', '{}' FROM routines p
UNION ALL SELECT 'database', format('%I', d.datname), format('owner %s, template %s, connections %s', pg_get_userbyid(d.datdba), d.datistemplate, d.datallowconn),
                 'ac', '', '{}' FROM pg_database d
-- An object that is new has what its owner's default privileges gave before, and what every new object has.
UNION ALL SELECT 'grant', format('%s on %s %s to %s', g.verb, g.class, g.named, g.who), '', 'a',
                 CASE WHEN g.class IN ('relation', 'schema', 'routine') THEN format('%s %s', g.class, g.oid)
                      WHEN g.class = 'column' THEN '' ELSE '' END,
                 ARRAY[format('default privileges %s of %s for %s in %s to %s', g.verb, g.defaults, pg_get_userbyid(g.owner), g.space, g.who),
                       format('default privileges %s of %s for %s in %s to %s', g.verb, g.defaults, pg_get_userbyid(g.owner), 0, g.who),
                       CASE WHEN g.class = 'routine' AND g.grantee = 0 AND g.verb = 'EXECUTE' THEN 'always' ELSE 'never' END]
            FROM rights g
UNION ALL SELECT 'default privileges', format('%s of %s for %s in %s to %s', d.verb, d.defaclobjtype, pg_get_userbyid(d.defaclrole), d.defaclnamespace, d.who),
                 coalesce((SELECT format('schema %I', n.nspname) FROM pg_namespace n WHERE n.oid = d.defaclnamespace), 'everywhere'), 'a', '', '{}' FROM given d
UNION ALL SELECT 'nothing to PUBLIC by default', format('%s of %s', d.defaclobjtype, pg_get_userbyid(d.defaclrole)), '', 'r', '', '{}'
            FROM pg_default_acl d WHERE d.defaclnamespace = 0 AND d.defaclobjtype IN ('f', 'T')
             AND NOT EXISTS (SELECT FROM given g WHERE g.oid = d.oid AND g.who = 'PUBLIC')
UNION ALL SELECT CASE WHEN p.prosecdef THEN 'security definer routine' ELSE 'routine body' END, p.named,
                 format('runs as %s, in %s, body %s%s', CASE WHEN p.prosecdef THEN pg_get_userbyid(p.proowner)::text ELSE 'its caller' END,
                        (SELECT l.lanname FROM pg_language l WHERE l.oid = p.prolang),
                        left(encode(sha256(convert_to(concat_ws('/', p.prosrc, p.probin, p.prosqlbody::text, p.proargdefaults::text), 'UTF8')), 'hex'), 16),
                        coalesce(', with ' || array_to_string(p.proconfig, ', '), '')),
                 CASE WHEN p.prosecdef THEN 'ac' ELSE 'c' END, '', '{}' FROM routines p
UNION ALL SELECT 'routine in front of a system one', p.named, '', 'a', '', '{}' FROM routines p
           WHERE p.proname IN (SELECT s.proname FROM pg_proc s WHERE s.oid < 16384 AND s.pronamespace = 'pg_catalog'::regnamespace)
UNION ALL SELECT 'operator', o.oid::regoperator::text, o.oprcode::text, 'ac', '', '{}' FROM pg_operator o
           WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM extension_members e WHERE e.classid = 'pg_operator'::regclass AND e.objid = o.oid)
UNION ALL SELECT 'cast', pg_describe_object('pg_cast'::regclass, c.oid, 0), format('%s %s %s', c.castfunc::regproc, c.castcontext, c.castmethod), 'ac', '', '{}'
            FROM pg_cast c WHERE c.oid >= 16384
             AND NOT EXISTS (SELECT FROM extension_members e WHERE e.classid = 'pg_cast'::regclass AND e.objid = c.oid)
UNION ALL SELECT 'trigger', format('%I on %s', t.tgname, r.named),
                 format('%s, enabled %s', regexp_replace(pg_get_triggerdef(t.oid), '\s+', ' ', 'g'), t.tgenabled), 'ac', '', '{}'
            FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal AND t.tgparentid = 0
UNION ALL SELECT 'event trigger', format('%I', t.evtname), format('%s calls %s, enabled %s', t.evtevent, t.evtfoid::regprocedure, t.evtenabled), 'ac', '', '{}'
            FROM pg_event_trigger t
UNION ALL SELECT 'rule', format('%I on %s', w.rulename, r.named), format('%s, enabled %s', pg_get_ruledef(w.oid), w.ev_enabled), 'ac', '', '{}'
            FROM pg_rewrite w JOIN relations r ON r.oid = w.ev_class WHERE w.rulename <> '_RETURN' AND r.oid >= 16384
UNION ALL SELECT 'view', r.named, format('%s%s', left(encode(sha256(convert_to(pg_get_viewdef(r.oid), 'UTF8')), 'hex'), 16), coalesce(', ' || array_to_string(r.reloptions, ', '), '')),
                 CASE WHEN r.oid IN (SELECT oid FROM readable) THEN 'ac' ELSE 'c' END, '', '{}'
            FROM relations r WHERE r.relkind IN ('v', 'm') AND r.oid >= 16384
UNION ALL SELECT 'part of a table that others read', format('%s in %s', c.named, p.named), '', 'a', format('relation %s', c.oid), '{always}'
            FROM pg_inherits i JOIN relations c ON c.oid = i.inhrelid JOIN relations p ON p.oid = i.inhparent
           WHERE p.oid IN (SELECT oid FROM readable)
UNION ALL SELECT CASE WHEN o.polpermissive THEN 'policy' ELSE 'restrictive policy' END, format('%I on %s', o.polname, r.named),
                 format('%s to %s using %s check %s', o.polcmd,
                        (SELECT string_agg(CASE x WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x)::text END, ', ' ORDER BY x) FROM unnest(o.polroles) x),
                        pg_get_expr(o.polqual, o.polrelid), pg_get_expr(o.polwithcheck, o.polrelid)),
                 CASE WHEN o.polpermissive THEN 'ac' ELSE 'cr' END,
                 CASE WHEN o.polpermissive THEN format('relation %s', r.oid) ELSE format('name %s', r.named) END, '{always}'
            FROM pg_policy o JOIN relations r ON r.oid = o.polrelid
UNION ALL SELECT 'row security', r.named, '', 'r', format('name %s', r.named), '{}' FROM relations r WHERE r.relrowsecurity
UNION ALL SELECT 'row security for the owner', r.named, '', 'r', format('name %s', r.named), '{}' FROM relations r WHERE r.relforcerowsecurity
UNION ALL SELECT 'extension', format('%I', e.extname), format('%s in %s', e.extversion, e.extnamespace::regnamespace), 'ac', '', '{}' FROM pg_extension e
UNION ALL SELECT 'language', format('%I', l.lanname), format('trusted %s, handler %s', l.lanpltrusted, l.lanplcallfoid::regproc), 'ac', '', '{}' FROM pg_language l
UNION ALL SELECT 'routine that runs by itself', format('%s for %s', p.named, pg_describe_object(d.classid, d.objid, d.objsubid)), '', 'a', '', '{}'
            FROM pg_depend d JOIN routines p ON p.oid = d.refobjid
           WHERE d.refclassid = 'pg_proc'::regclass AND d.classid IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_class'::regclass, 'pg_type'::regclass)
UNION ALL SELECT 'membership', format('%s in %s', pg_get_userbyid(m.member), pg_get_userbyid(m.roleid)), (to_jsonb(m) - '{oid,roleid,member,grantor}'::text[])::text, 'ac', '', '{}'
            FROM pg_auth_members m
           WHERE NOT (m.grantor = (SELECT oid FROM kit) OR (pg_get_userbyid(m.member) ~ '^taskpass_kit(_[0-9a-hjkmnp-tv-z])?$' AND pg_get_userbyid(m.roleid) ~ '^tpm?_'))
UNION ALL SELECT 'role', r.rolname::text, concat_ws(' ', CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                 CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
                 CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN r.rolcanlogin THEN 'LOGIN' END), 'ac', '', '{}'
            FROM pg_roles r WHERE r.rolname !~ '^tpm?_[0-9a-z]{8}_'
UNION ALL SELECT 'setting', format('%s of %s in %s', split_part(s.one, '=', 1), CASE x.setrole WHEN 0 THEN 'everybody' ELSE pg_get_userbyid(x.setrole)::text END,
                 coalesce((SELECT d.datname::text FROM pg_database d WHERE d.oid = x.setdatabase), 'every database')), s.one, 'acr', '', '{}'
            FROM pg_db_role_setting x, unnest(x.setconfig) AS s(one)
           WHERE x.setrole = 0 OR pg_get_userbyid(x.setrole) !~ '^tp_[0-9a-z]{8}_'
UNION ALL SELECT 'publication', format('%I', p.pubname), format('all tables %s, %s', p.puballtables,
                 (SELECT string_agg(r.prrelid::regclass::text || coalesce(pg_get_expr(r.prqual, r.prrelid), '') || coalesce(r.prattrs::text, ''), ', ' ORDER BY r.prrelid)
                    FROM pg_publication_rel r WHERE r.prpubid = p.oid)
                 || coalesce((SELECT string_agg(n.pnnspid::regnamespace::text, ', ' ORDER BY n.pnnspid) FROM pg_publication_namespace n WHERE n.pnpubid = p.oid), '')),
                 'ac', '', '{}' FROM pg_publication p
UNION ALL SELECT 'subscription', format('%I', s.subname), format('enabled %s, %s', s.subenabled, s.subpublications), 'ac', '', '{}' FROM pg_subscription s
UNION ALL SELECT 'foreign data wrapper', format('%I', w.fdwname), format('%s %s', w.fdwhandler::regproc, w.fdwoptions), 'ac', '', '{}' FROM pg_foreign_data_wrapper w
UNION ALL SELECT 'foreign server', format('%I', s.srvname), format('%s', s.srvoptions), 'ac', '', '{}' FROM pg_foreign_server s
UNION ALL SELECT 'user mapping', format('%s on %I', u.usename, u.srvname), '', 'a', '', '{}' FROM pg_user_mappings u
UNION ALL SELECT 'schema that a role finds first', format('%I', n.nspname), '', 'a', '', '{}' FROM spaces n WHERE n.nspname IN (SELECT r.rolname FROM pg_roles r)
