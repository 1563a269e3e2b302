-- What a write does beyond the rows that it names, as one row of one statement: foreign keys that delete or change rows,
-- triggers, rewrite rules, and the sequences that belong to columns. An ordinary login may run it.
WITH places AS (
    SELECT c.oid, c.relnamespace FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'f')
), fired AS (
    -- Not what foreign keys fire (internal), nor what is switched off or fires on a replica only.
    SELECT t.tgrelid, t.tgfoid, pg_catalog.array_remove(ARRAY[
               CASE WHEN t.tgtype & 4 <> 0 THEN 'INSERT' END, CASE WHEN t.tgtype & 8 <> 0 THEN 'DELETE' END,
               CASE WHEN t.tgtype & 16 <> 0 THEN 'UPDATE' END], NULL) AS verbs
    FROM pg_catalog.pg_trigger t JOIN places p ON p.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
), keys AS (
    SELECT k.confrelid, k.conrelid, a.verb, a.action
    FROM pg_catalog.pg_constraint k
    CROSS JOIN LATERAL (VALUES ('DELETE', k.confdeltype), ('UPDATE', k.confupdtype)) AS a(verb, action)
    WHERE k.contype = 'f' AND a.action IN ('c', 'n', 'd')
)
SELECT
    (SELECT coalesce(json_agg(json_build_array(k.confrelid::bigint, k.conrelid::bigint, k.verb,
                CASE WHEN k.verb = 'DELETE' AND k.action = 'c' THEN 'DELETE' ELSE 'UPDATE' END)), '[]') FROM keys k),
    -- Every relation that a rule names, its own included: what it does there is not looked at.
    (SELECT coalesce(json_agg(json_build_array(r.ev_class::bigint, d.refobjid::bigint,
                CASE r.ev_type WHEN '2' THEN 'UPDATE' WHEN '3' THEN 'INSERT' ELSE 'DELETE' END)), '[]')
     FROM pg_catalog.pg_rewrite r JOIN places p ON p.oid = r.ev_class
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
         AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE r.ev_type IN ('2', '3', '4') AND r.ev_enabled IN ('O', 'A')),
    (SELECT coalesce(json_agg(json_build_array(f.tgrelid::bigint, f.tgfoid::bigint, f.verbs)), '[]') FROM fired f),
    (SELECT coalesce(json_agg(json_build_array(o.oid::bigint, n.nspname, o.proname, o.prosecdef,
                -- The whole definition: what a routine does is its body and its settings.
                pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
                    pg_catalog.pg_get_userbyid(o.proowner) || ' ' || pg_catalog.pg_get_functiondef(o.oid), 'UTF8')), 'hex'))), '[]')
     FROM pg_catalog.pg_proc o JOIN pg_catalog.pg_namespace n ON n.oid = o.pronamespace
     WHERE o.oid IN (SELECT f.tgfoid FROM fired f)),
    (SELECT coalesce(json_agg(json_build_array(d.refobjid::bigint, d.refobjsubid, s.oid::bigint, s.relname)), '[]')
     FROM pg_catalog.pg_depend d
     JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
     JOIN places p ON p.oid = d.refobjid AND p.relnamespace = s.relnamespace
     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
       AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i'))
