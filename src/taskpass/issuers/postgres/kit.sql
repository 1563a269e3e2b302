-- Taskpass target kit, version 2: the only rights that a broker has in this database.
--
-- A broker's login may execute the routines granted at the end of the enrolment script, and nothing else: it has no
-- CREATEROLE and no table. The routines run as taskpass_kit, a role that cannot log in and is not a superuser. Every
-- routine takes a lease id and builds the role name from it and from the caller's own enrolment, so one installation
-- cannot name another's role. What may be granted, for how long and how often is in taskpass.ceiling, which only the
-- owner of this schema can change. Every issue, enable and close writes one line to the server's log.
--
-- Errors: TP001 malformed argument, TP002 caller not enrolled, TP003 above the ceiling, TP004 object changed or gone,
-- TP005 rights are not exactly the wanted ones, TP006 the lease's state does not allow it, TP007 the
-- owner is not fit to be migrated as.
--
-- Versions: tables are made as version 1 had them and then altered, below, by statements that may run again. Routines
-- are dropped and made anew. What takes access away (close, sweep, lend, seal, clean) keeps its parameters and results
-- for ever, so that a broker can always take back what an older or newer kit gave.

-- Run it while connected to that database, as a superuser, or (16 and later) as
-- the owner of the database and its tables with CREATEROLE. It may be run again.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '10s';

DO $do$ DECLARE
    present integer;
BEGIN
    IF to_regclass('taskpass.kit_version') IS NOT NULL THEN
        EXECUTE 'SELECT max(version) FROM taskpass.kit_version' INTO present;
        IF present > 2 THEN
            RAISE EXCEPTION 'taskpass: the kit here is version %, and this script is of version 2', present
                USING HINT = 'a kit is never replaced by an older one: use the newer Taskpass';
        END IF;
        -- So that no issue is half-way through when its routines are replaced.
        EXECUTE 'LOCK TABLE taskpass.gate IN EXCLUSIVE MODE';
    END IF;
END $do$;

DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskpass_kit') THEN
        CREATE ROLE taskpass_kit NOLOGIN CREATEROLE;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskpass_kit'
                  AND (rolsuper OR rolcanlogin OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcreaterole)) THEN
        RAISE EXCEPTION 'taskpass: there is a role taskpass_kit that is not NOLOGIN CREATEROLE only';
    END IF;
    -- An administrator who is not a superuser needs the role while the routines are handed to it; ends below.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF current_setting('server_version_num')::integer >= 160000 THEN
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        ELSE
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER';
        END IF;
    END IF;
END $do$;

CREATE SCHEMA IF NOT EXISTS taskpass;
REVOKE ALL ON SCHEMA taskpass FROM PUBLIC;

CREATE TABLE IF NOT EXISTS taskpass.kit_version (
    version      integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Which login belongs to which installation. The epoch detects a broker whose own store was restored from a backup.
CREATE TABLE IF NOT EXISTS taskpass.broker (
    login        name PRIMARY KEY,
    installation text NOT NULL UNIQUE CHECK (installation ~ '^[0-9a-hjkmnp-tv-z]{8}$'),
    epoch        bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0)
);

-- What may be granted at most. "*" stands for any run of characters. Of all rows that match a table the strictest
-- counts; a table that no row matches is refused. longest_seconds = 0 forbids. most_live counts leases per broker.
CREATE TABLE IF NOT EXISTS taskpass.ceiling (
    schema_pattern  text NOT NULL,
    object_pattern  text NOT NULL,
    verb            text NOT NULL CHECK (verb IN ('SELECT')),
    longest_seconds integer NOT NULL CHECK (longest_seconds >= 0),
    most_live       integer NOT NULL CHECK (most_live >= 0),
    PRIMARY KEY (schema_pattern, object_pattern, verb)
);

-- One row per lease that was ever issued or closed here. A closing lease can never be enabled again, and a close that
-- comes before a late issue leaves a row that refuses it. The row lock orders issue, enable and close of one lease.
-- head_seq is the highest audit number that came with an effect: a broker that knows less was restored from a backup.
CREATE TABLE IF NOT EXISTS taskpass.lease (
    installation text NOT NULL,
    lease        text NOT NULL,
    state        text NOT NULL CHECK (state IN ('created', 'enabled', 'closing', 'sealed', 'cleaned')),
    role         oid,
    rights       jsonb NOT NULL DEFAULT '[]',
    head_seq     bigint NOT NULL DEFAULT 0,
    started_at   timestamptz,
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (installation, lease)
);

-- Locked by issue and clean, so that one of them runs at a time. A table, not an advisory lock: every login may take
-- advisory locks, and a lease could stop all issuing with one.
CREATE TABLE IF NOT EXISTS taskpass.gate (held boolean);

-- When a role that holds a manifest's rights was last given to a lease. Such a role cannot log in and has no member but
-- leases; it is kept for a while because granting anew makes every session of the database plan its statements again.
CREATE TABLE IF NOT EXISTS taskpass.manifest (
    role    name PRIMARY KEY,
    used_at timestamptz NOT NULL
);

-- Since version 2. `head` is the audit head (number and hash) that came with the last effect, for DBAs who join it with
-- the broker's record. A second broker on the same store has a login of its own (docs/adr/0013).
ALTER TABLE taskpass.lease ADD COLUMN IF NOT EXISTS head text NOT NULL DEFAULT '';
ALTER TABLE taskpass.broker DROP CONSTRAINT IF EXISTS broker_installation_key;
ALTER TABLE taskpass.ceiling DROP CONSTRAINT IF EXISTS ceiling_verb_check;
ALTER TABLE taskpass.ceiling ADD CONSTRAINT ceiling_verb_check CHECK (verb IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'));
-- What one session of the lease may use at a time (NULL: the defaults of limits_of), and whose rows it may see.
ALTER TABLE taskpass.lease ADD COLUMN IF NOT EXISTS limits jsonb;
ALTER TABLE taskpass.lease ADD COLUMN IF NOT EXISTS tenant text;

-- As whom migrations may run, for how long, and how many at a time: the DBA's consent, without which no lease acts as an
-- owner. A lease that does has the owner's oid in `owner`, and no rights of its own.
CREATE TABLE IF NOT EXISTS taskpass.owner (
    role            name PRIMARY KEY,
    longest_seconds integer NOT NULL CHECK (longest_seconds >= 0),
    most_live       integer NOT NULL CHECK (most_live >= 0)
);
ALTER TABLE taskpass.lease ADD COLUMN IF NOT EXISTS owner oid;

-- Nothing of an earlier version stays callable. Whatever is called at this moment is tried again by its broker.
DROP VIEW IF EXISTS taskpass.leases;
DO $do$ DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN SELECT p.oid::regprocedure FROM pg_proc p
                    WHERE p.pronamespace = 'taskpass'::regnamespace AND p.proowner = 'taskpass_kit'::regrole
                      AND p.proname <> 'tenant' LOOP  -- policies of row security rest on that one
        EXECUTE format('DROP ROUTINE %s', routine);
    END LOOP;
END $do$;

GRANT USAGE ON SCHEMA taskpass TO taskpass_kit;
GRANT SELECT, INSERT, UPDATE, DELETE ON taskpass.manifest TO taskpass_kit;
GRANT SELECT ON taskpass.broker, taskpass.ceiling, taskpass.owner, taskpass.kit_version TO taskpass_kit;
GRANT UPDATE (epoch) ON taskpass.broker TO taskpass_kit;
GRANT SELECT, INSERT, UPDATE, DELETE ON taskpass.lease TO taskpass_kit;
GRANT SELECT, UPDATE ON taskpass.gate TO taskpass_kit;

-- Only superusers may set temp_file_limit, unless they pass it on. Where this is refused the limit is nobody's.
DO $do$ BEGIN
    GRANT SET ON PARAMETER temp_file_limit TO taskpass_kit;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'taskpass: not allowed to pass on temp_file_limit';
END $do$;

-- ------------------------------------------------------------------------------------------------ internal routines

-- The limits of a lease, each within its bounds: seconds, and megabytes (2^20 bytes) of temporary files per session.
CREATE OR REPLACE FUNCTION taskpass.limits_of(limits jsonb, OUT statement integer, OUT transaction integer,
    OUT idle_in_transaction integer, OUT idle integer, OUT temp_megabytes integer)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    statement := coalesce((limits->>'statement_seconds')::integer, 60);
    transaction := coalesce((limits->>'transaction_seconds')::integer, 600);
    idle_in_transaction := coalesce((limits->>'idle_in_transaction_seconds')::integer, 60);
    idle := coalesce((limits->>'idle_seconds')::integer, 600);
    temp_megabytes := coalesce((limits->>'temp_megabytes')::integer, 1024);
    IF statement NOT BETWEEN 1 AND 3600 OR transaction NOT BETWEEN 1 AND 14400 OR idle_in_transaction NOT BETWEEN 1 AND 3600
       OR idle NOT BETWEEN 10 AND 28800 OR temp_megabytes NOT BETWEEN 1 AND 1048576 THEN
        RAISE EXCEPTION 'taskpass: a limit is out of its bounds' USING ERRCODE = 'TP001';
    END IF;
EXCEPTION WHEN invalid_text_representation OR numeric_value_out_of_range THEN
    RAISE EXCEPTION 'taskpass: a limit is not a number' USING ERRCODE = 'TP001';
END $kit$;

-- Sets them as defaults of the role's sessions. Of these the agent cannot change temp_file_limit; for the others there
-- is overdue. A lock that is waited for longer than three seconds is somebody else's work standing still.
CREATE OR REPLACE FUNCTION taskpass.limit_role(lease_role name, limits jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    wanted record := taskpass.limits_of(limits);
BEGIN
    EXECUTE format('ALTER ROLE %I SET statement_timeout = ''%ss''', lease_role, wanted.statement);
    EXECUTE format('ALTER ROLE %I SET lock_timeout = ''3s''', lease_role);
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''%ss''', lease_role, wanted.idle_in_transaction);
    EXECUTE format('ALTER ROLE %I SET idle_session_timeout = ''%ss''', lease_role, wanted.idle);
    IF current_setting('server_version_num')::integer >= 170000 THEN
        EXECUTE format('ALTER ROLE %I SET transaction_timeout = ''%ss''', lease_role, wanted.transaction);
    END IF;
    IF has_parameter_privilege('temp_file_limit', 'SET') THEN
        EXECUTE format('ALTER ROLE %I SET temp_file_limit = ''%sMB''', lease_role, wanted.temp_megabytes);
    END IF;
END $kit$;

-- The installation of the login that called.
CREATE OR REPLACE FUNCTION taskpass.caller() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    found_installation text;
BEGIN
    SELECT b.installation INTO found_installation FROM taskpass.broker b WHERE b.login = session_user;
    IF found_installation IS NULL THEN
        RAISE EXCEPTION 'taskpass: this login is not enrolled here' USING ERRCODE = 'TP002';
    END IF;
    RETURN found_installation;
END $kit$;

-- The role of one of the caller's leases; the only way in which any routine comes to a role's name.
CREATE OR REPLACE FUNCTION taskpass.role_of(lease text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    IF lease IS NULL OR lease !~ '^lse_[0-7][0-9a-hjkmnp-tv-z]{25}$' THEN
        RAISE EXCEPTION 'taskpass: not a lease id' USING ERRCODE = 'TP001';
    END IF;
    RETURN 'tp_' || taskpass.caller() || '_' || substr(lease, 5);
END $kit$;

CREATE OR REPLACE FUNCTION taskpass.demand_verifier(verifier text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    IF verifier IS NULL
       OR verifier !~ '^SCRAM-SHA-256[$][1-9][0-9]{0,6}:[A-Za-z0-9+/]{22,}={0,2}[$][A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$' THEN
        RAISE EXCEPTION 'taskpass: only a SCRAM-SHA-256 verifier is accepted' USING ERRCODE = 'TP001';
    END IF;
END $kit$;

-- The number in an audit head ("<number>:<hash>"); 0 for an empty one.
CREATE OR REPLACE FUNCTION taskpass.seq(head text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    IF head IS NULL OR head !~ '^([0-9]{1,18}:[0-9a-z:]{1,140})?$' THEN
        RAISE EXCEPTION 'taskpass: not an audit head' USING ERRCODE = 'TP001';
    END IF;
    RETURN coalesce(nullif(split_part(head, ':', 1), ''), '0')::bigint;
END $kit$;

-- The head with the higher number.
CREATE OR REPLACE FUNCTION taskpass.later(known text, head text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    RETURN CASE WHEN taskpass.seq(head) > taskpass.seq(known) THEN head ELSE known END;
END $kit$;

-- A frozen snapshot would count leases and read the ceiling as they were.
CREATE OR REPLACE FUNCTION taskpass.demand_fresh_snapshots() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'taskpass: only in a read committed transaction' USING ERRCODE = 'TP001';
    END IF;
END $kit$;

-- The wanted rights in one form: sorted, without repetitions. Refuses what is malformed. SELECT is always among the
-- verbs: with UPDATE alone rows cannot be picked, so it would only serve to change them all. `sequences` are those that
-- belong to the columns, for verbs that take values from them.
CREATE OR REPLACE FUNCTION taskpass.canonical(rights jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    clean jsonb;
BEGIN
    IF rights IS NULL OR jsonb_typeof(rights) <> 'array' OR jsonb_array_length(rights) > 2000 THEN
        RAISE EXCEPTION 'taskpass: not a list of rights' USING ERRCODE = 'TP001';
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('oid', r.oid::bigint,
               'verbs', (SELECT jsonb_agg(v ORDER BY v COLLATE "C") FROM (SELECT DISTINCT unnest(r.verbs) AS v) AS d),
               'columns', (SELECT jsonb_agg(c ORDER BY c) FROM (SELECT DISTINCT unnest(r.columns) AS c) AS d),
               'sequences', (SELECT jsonb_agg(q::bigint ORDER BY q) FROM (SELECT DISTINCT unnest(r.sequences) AS q) AS d)))
               ORDER BY r.oid), '[]')
      INTO clean
      FROM jsonb_to_recordset(rights) AS r(oid oid, columns int[], verbs text[], sequences oid[]);
    IF EXISTS (SELECT FROM jsonb_to_recordset(clean) AS r(oid oid, columns int[], verbs text[], sequences oid[])
                WHERE r.oid IS NULL OR (ARRAY['SELECT'] <@ r.verbs AND r.verbs <@ ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'])
                      IS NOT TRUE
                   OR (r.sequences IS NOT NULL AND (array_position(r.sequences, NULL) > 0 OR NOT r.verbs && ARRAY['INSERT', 'UPDATE']))
                   OR coalesce(cardinality(r.columns), 0) = 0 OR 0 >= ANY (r.columns) OR array_position(r.columns, NULL) > 0)
       OR (SELECT count(DISTINCT r.oid) <> count(*) FROM jsonb_to_recordset(clean) AS r(oid oid)) THEN
        RAISE EXCEPTION 'taskpass: a right must name one object, its columns, and SELECT among its verbs' USING ERRCODE = 'TP001';
    END IF;
    RETURN clean;
END $kit$;

-- Locks each table so that its name and columns stay what they are until the end of the transaction, in oid order.
-- Its sequences must belong to these columns.
CREATE OR REPLACE FUNCTION taskpass.hold(rights jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
    place text;
BEGIN
    FOR item IN SELECT r.oid, r.columns, r.sequences
                  FROM jsonb_to_recordset(rights) AS r(oid oid, columns int[], sequences oid[]) ORDER BY r.oid LOOP
        SELECT format('%I.%I', n.nspname, c.relname) INTO place
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = item.oid AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
           AND n.nspname NOT IN ('information_schema', 'taskpass') AND n.nspname !~ '^pg_';
        IF place IS NULL THEN
            RAISE EXCEPTION 'taskpass: object % is not a table here', item.oid USING ERRCODE = 'TP004';
        END IF;
        EXECUTE 'LOCK TABLE ONLY ' || place || ' IN ACCESS SHARE MODE';
        IF to_regclass(place) IS DISTINCT FROM item.oid::regclass
           OR (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = item.oid AND a.attnum = ANY (item.columns)
                  AND NOT a.attisdropped) <> cardinality(item.columns)
           OR EXISTS (SELECT unnest(item.sequences) EXCEPT
                      SELECT s.oid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                       WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                         AND d.refobjid = item.oid AND d.refobjsubid = ANY (item.columns) AND d.deptype IN ('a', 'i')) THEN
            RAISE EXCEPTION 'taskpass: object % changed', item.oid USING ERRCODE = 'TP004';
        END IF;
    END LOOP;
EXCEPTION WHEN undefined_table OR invalid_schema_name THEN
    RAISE EXCEPTION 'taskpass: an object changed' USING ERRCODE = 'TP004';
END $kit$;

-- Refuses rights, a life (seconds in all) or a number of live leases above the ceiling.
CREATE OR REPLACE FUNCTION taskpass.demand_below_ceiling(lease text, rights jsonb, seconds integer) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    live bigint;
    tight record;
BEGIN
    IF seconds IS NULL OR seconds < 1 THEN
        RAISE EXCEPTION 'taskpass: a lease lives at least one second' USING ERRCODE = 'TP001';
    END IF;
    SELECT count(*) INTO live FROM taskpass.lease l
     WHERE l.installation = (SELECT taskpass.caller()) AND l.state IN ('created', 'enabled')
       AND l.lease <> demand_below_ceiling.lease;
    SELECT n.nspname, o.relname, v.verb, min(c.longest_seconds) AS longest, min(c.most_live) AS most INTO tight
      FROM jsonb_to_recordset(rights) AS r(oid oid, verbs text[])
     CROSS JOIN unnest(r.verbs) AS v(verb)
      LEFT JOIN pg_class o ON o.oid = r.oid
      LEFT JOIN pg_namespace n ON n.oid = o.relnamespace
      LEFT JOIN taskpass.ceiling c ON c.verb = v.verb AND n.nspname LIKE taskpass.pattern(c.schema_pattern) ESCAPE '!'
                                  AND o.relname LIKE taskpass.pattern(c.object_pattern) ESCAPE '!'
     GROUP BY r.oid, n.nspname, o.relname, v.verb
    HAVING coalesce(min(c.longest_seconds), 0) < seconds OR coalesce(min(c.most_live), 0) <= live
     LIMIT 1;
    IF FOUND AND tight.longest IS NULL THEN
        RAISE EXCEPTION 'taskpass: % on %.% is not in the ceiling', tight.verb, tight.nspname, tight.relname
            USING ERRCODE = 'TP003';
    ELSIF FOUND AND tight.longest < seconds THEN
        RAISE EXCEPTION 'taskpass: the ceiling of % on %.% is % seconds', tight.verb, tight.nspname, tight.relname, tight.longest
            USING ERRCODE = 'TP003';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'taskpass: the ceiling is % live leases', tight.most USING ERRCODE = 'TP003';
    END IF;
END $kit$;

-- A ceiling's pattern as LIKE understands it, with "!" as escape (a backslash would depend on a setting of the caller).
CREATE OR REPLACE FUNCTION taskpass.pattern(glob text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT replace(replace(replace(replace(glob, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%')
$kit$;

-- Grants to `grantee` CONNECT here, USAGE of the schemas, the verbs on the columns (DELETE knows no columns) and USAGE
-- of the sequences. A GRANT without the right to it is only a warning, so what counts is demand_exact.
CREATE OR REPLACE FUNCTION taskpass.grant_rights(grantee text, rights jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
    FOR item IN SELECT DISTINCT n.nspname FROM jsonb_to_recordset(rights) AS r(oid oid)
                  JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', item.nspname, grantee);
    END LOOP;
    FOR item IN SELECT n.nspname, c.relname, 'DELETE' = ANY (r.verbs) AS deletes,
                       (SELECT string_agg(format('%s (%s)', v.verb, names.listed), ', ')
                          FROM unnest(array_remove(r.verbs, 'DELETE')) AS v(verb),
                               (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS listed FROM pg_attribute a
                                 WHERE a.attrelid = c.oid AND a.attnum = ANY (r.columns)) AS names) AS verbs
                  FROM jsonb_to_recordset(rights) AS r(oid oid, columns int[], verbs text[])
                  JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY r.oid LOOP
        EXECUTE format('GRANT %s ON TABLE %I.%I TO %I', item.verbs, item.nspname, item.relname, grantee);
        IF item.deletes THEN
            EXECUTE format('GRANT DELETE ON TABLE %I.%I TO %I', item.nspname, item.relname, grantee);
        END IF;
    END LOOP;
    FOR item IN SELECT n.nspname, c.relname FROM jsonb_to_recordset(rights) AS r(sequences oid[]), unnest(r.sequences) AS q(oid)
                  JOIN pg_class c ON c.oid = q.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY c.oid LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %I.%I TO %I', item.nspname, item.relname, grantee);
    END LOOP;
END $kit$;

-- What a role holds anywhere, as text: one line per object of which the catalogue says that it is in its access list or
-- its property. Other databases' objects are named by number.
CREATE OR REPLACE FUNCTION taskpass.held(holder oid) RETURNS SETOF text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    -- In this language, because it keeps the plan, which takes longer to make than to run.
    RETURN QUERY SELECT CASE
        WHEN d.deptype <> 'a' OR d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            THEN format('%s of %s %s in %s', d.deptype, d.classid::regclass, d.objid, d.dbid)
        WHEN d.classid = 'pg_database'::regclass THEN
            (SELECT format('database %s %s', d.objid, string_agg(a.privilege_type || a.is_grantable::text, ',' ORDER BY a.privilege_type))
               FROM pg_database o, aclexplode(o.datacl) a WHERE o.oid = d.objid AND a.grantee = holder)
        WHEN d.classid = 'pg_namespace'::regclass THEN
            (SELECT format('schema %s %s', d.objid, string_agg(a.privilege_type || a.is_grantable::text, ',' ORDER BY a.privilege_type))
               FROM pg_namespace o, aclexplode(o.nspacl) a WHERE o.oid = d.objid AND a.grantee = holder)
        WHEN d.classid = 'pg_class'::regclass AND d.objsubid > 0 THEN
            (SELECT format('column %s.%s %s', d.objid, d.objsubid, string_agg(a.privilege_type || a.is_grantable::text, ',' ORDER BY a.privilege_type))
               FROM pg_attribute o, aclexplode(o.attacl) a
              WHERE o.attrelid = d.objid AND o.attnum = d.objsubid AND a.grantee = holder)
        WHEN d.classid = 'pg_class'::regclass THEN
            (SELECT format('relation %s %s', d.objid, string_agg(a.privilege_type || a.is_grantable::text, ',' ORDER BY a.privilege_type))
               FROM pg_class o, aclexplode(o.relacl) a WHERE o.oid = d.objid AND a.grantee = holder)
        ELSE format('%s of %s %s.%s', d.deptype, d.classid::regclass, d.objid, d.objsubid)
        END
      FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = holder;
END $kit$;

-- Refuses unless `holder` holds exactly `rights` (or nothing, for NULL) and is an ordinary role.
CREATE OR REPLACE FUNCTION taskpass.demand_exact(holder oid, rights jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    wanted text[] := '{}';
BEGIN
    IF rights IS NOT NULL THEN
        SELECT array_agg(w.line ORDER BY w.line COLLATE "C") INTO wanted FROM (
            SELECT format('database %s CONNECTfalse', d.oid) AS line FROM pg_database d WHERE d.datname = current_database()
            UNION SELECT format('schema %s USAGEfalse', c.relnamespace)
                    FROM jsonb_to_recordset(rights) AS r(oid oid) JOIN pg_class c ON c.oid = r.oid
            UNION SELECT format('column %s.%s %s', r.oid, number, (SELECT string_agg(v.verb || 'false', ',' ORDER BY v.verb)
                                                                    FROM unnest(array_remove(r.verbs, 'DELETE')) AS v(verb)))
                    FROM jsonb_to_recordset(rights) AS r(oid oid, columns int[], verbs text[]), unnest(r.columns) AS number
            UNION SELECT format('relation %s DELETEfalse', r.oid)
                    FROM jsonb_to_recordset(rights) AS r(oid oid, verbs text[]) WHERE 'DELETE' = ANY (r.verbs)
            UNION SELECT format('relation %s USAGEfalse', q.oid)
                    FROM jsonb_to_recordset(rights) AS r(sequences oid[]), unnest(r.sequences) AS q(oid)) AS w;
    END IF;
    IF wanted IS DISTINCT FROM (SELECT coalesce(array_agg(h ORDER BY h COLLATE "C"), '{}') FROM taskpass.held(holder) AS h) THEN
        RAISE EXCEPTION 'taskpass: the rights of role % are not exactly the wanted ones', holder USING ERRCODE = 'TP005',
            HINT = 'taskpass_kit lacks a verb WITH GRANT OPTION on a table or USAGE on its sequence, USAGE WITH GRANT OPTION on its schema, or CONNECT WITH GRANT OPTION';
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.oid = holder AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb
                  OR r.rolreplication OR r.rolbypassrls)) THEN
        RAISE EXCEPTION 'taskpass: role % is not an ordinary role', holder USING ERRCODE = 'TP005';
    END IF;
END $kit$;

-- Refuses unless `lease_role` is a member of `wanted` and nothing else (of nothing at all, for NULL).
CREATE OR REPLACE FUNCTION taskpass.demand_membership(lease_role oid, wanted oid) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    found_roles oid[];
BEGIN
    SELECT coalesce(array_agg(m.roleid), '{}') INTO found_roles FROM pg_auth_members m WHERE m.member = lease_role;
    IF found_roles IS DISTINCT FROM array_remove(ARRAY[wanted], NULL) THEN
        RAISE EXCEPTION 'taskpass: role % is a member of something else', lease_role USING ERRCODE = 'TP005';
    END IF;
END $kit$;

-- 16 and later: the role without login that holds exactly `rights`; made if it is not there. Its members are leases.
-- Its name is a digest that this routine computes itself, so nobody can put other rights behind a name.
CREATE OR REPLACE FUNCTION taskpass.manifest_role(rights jsonb) RETURNS name
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    holder name := 'tpm_' || taskpass.caller() || '_' || left(encode(sha256(convert_to(
        (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) || ' ' || rights::text, 'UTF8')), 'hex'), 40);
    holder_oid oid;
BEGIN
    SELECT oid INTO holder_oid FROM pg_roles WHERE rolname = holder;
    IF holder_oid IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', holder);
        PERFORM taskpass.grant_rights(holder, rights);
        SELECT oid INTO holder_oid FROM pg_roles WHERE rolname = holder;
    END IF;
    PERFORM taskpass.demand_exact(holder_oid, rights);
    PERFORM taskpass.demand_membership(holder_oid, NULL);
    IF (SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = holder_oid) THEN
        RAISE EXCEPTION 'taskpass: role % holds rights and can log in', holder USING ERRCODE = 'TP005';
    END IF;
    INSERT INTO taskpass.manifest AS m (role, used_at) VALUES (holder, clock_timestamp())
        ON CONFLICT ON CONSTRAINT manifest_pkey DO UPDATE SET used_at = excluded.used_at;
    RETURN holder;
END $kit$;

-- Takes USAGE of sequences away. REVOKE ALL and DROP OWNED would also want a right on the columns of a sequence, which
-- the kit does not have.
CREATE OR REPLACE FUNCTION taskpass.release_sequences(holder text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
BEGIN
    FOR item IN SELECT DISTINCT c.oid::regclass::text AS place FROM pg_shdepend d JOIN pg_class c ON c.oid = d.objid
                 WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'a' AND d.classid = 'pg_class'::regclass
                   AND d.refobjid = (SELECT oid FROM pg_roles WHERE rolname = holder) AND c.relkind = 'S'
                   AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) LOOP
        EXECUTE format('REVOKE USAGE ON SEQUENCE %s FROM %I', item.place, holder);
    END LOOP;
END $kit$;

-- Takes away what a lease's role was given, without waiting for a lock on any table.
CREATE OR REPLACE FUNCTION taskpass.strip(lease_role text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
    me oid := (SELECT oid FROM pg_roles WHERE rolname = lease_role);
BEGIN
    FOR item IN SELECT m.roleid::regrole::text AS role FROM pg_auth_members m WHERE m.member = me LOOP
        EXECUTE format('REVOKE %s FROM %I', item.role, lease_role);
    END LOOP;
    PERFORM taskpass.release_sequences(lease_role);
    FOR item IN SELECT DISTINCT d.objid::regclass::text AS place FROM pg_shdepend d
                 WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = me AND d.deptype = 'a'
                   AND d.classid = 'pg_class'::regclass
                   AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) LOOP
        EXECUTE format('REVOKE ALL ON TABLE %s FROM %I', item.place, lease_role);
    END LOOP;
END $kit$;

-- Drops manifest roles of the caller that belong to this database, have no member but the kit, and were not used lately.
CREATE OR REPLACE FUNCTION taskpass.drop_unused(since timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
    here oid := (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    FOR item IN SELECT r.rolname FROM pg_roles r
                 WHERE r.rolname ~ ('^tpm_' || taskpass.caller() || '_[0-9a-f]{40}$')
                   AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.member <> current_user::regrole)
                   AND NOT EXISTS (SELECT FROM taskpass.manifest m WHERE m.role = r.rolname AND m.used_at > since)
                   AND NOT EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
                          AND (d.dbid NOT IN (0, here) OR (d.classid = 'pg_database'::regclass AND d.objid <> here))) LOOP
        PERFORM taskpass.release_sequences(item.rolname);
        EXECUTE format('DROP OWNED BY %I', item.rolname);
        EXECUTE format('DROP ROLE %I', item.rolname);
        DELETE FROM taskpass.manifest m WHERE m.role = item.rolname;
    END LOOP;
END $kit$;

-- The kit's own roles: a lease's role is given to nobody else.
CREATE OR REPLACE FUNCTION taskpass.own_roles() RETURNS oid[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT array_agg(r.oid) FROM pg_roles r WHERE r.rolname ~ '^taskpass_kit(_[0-9a-hjkmnp-tv-z])?$'
$kit$;

-- Makes or re-keys the role of a lease, without login. Rights may be empty (a rehearsal).
CREATE OR REPLACE FUNCTION taskpass.make(lease text, rights jsonb, verifier text, seconds integer, connections integer, head text)
RETURNS oid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
    lease_oid oid;
    holder name;
    modern boolean := current_setting('server_version_num')::integer >= 160000;
    known taskpass.lease;
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
    INSERT INTO taskpass.lease AS l (installation, lease, state, rights) VALUES (taskpass.caller(), make.lease, 'created', make.rights)
        ON CONFLICT ON CONSTRAINT lease_pkey DO NOTHING;
    SELECT * INTO known FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = make.lease FOR UPDATE;
    IF known.state NOT IN ('created', 'enabled') OR known.rights <> rights THEN
        RAISE EXCEPTION 'taskpass: the lease is closing, closed or has other rights' USING ERRCODE = 'TP006';
    END IF;
    IF modern THEN
        PERFORM set_config('createrole_self_grant', 'set, inherit', true);
    END IF;
    SELECT oid INTO lease_oid FROM pg_roles WHERE rolname = lease_role;
    IF lease_oid IS NULL THEN
        IF modern THEN
            EXECUTE format('SELECT taskpass.maker_%s(''make'', ARRAY[$1], NULL, NULL)', right(lease, 1)) USING lease_role;
        ELSE
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT', lease_role);
        END IF;
        SELECT oid INTO lease_oid FROM pg_roles WHERE rolname = lease_role;
        EXECUTE format('COMMENT ON ROLE %I IS %L', lease_role, lease);
        PERFORM taskpass.limit_role(lease_role, NULL);
        IF NOT EXISTS (SELECT FROM jsonb_to_recordset(rights) AS r(verbs text[]) WHERE r.verbs <> ARRAY['SELECT']) THEN
            EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', lease_role);
        END IF;
        IF modern THEN
            holder := taskpass.manifest_role(rights);
            EXECUTE format('GRANT %I TO %I WITH INHERIT TRUE, SET FALSE', holder, lease_role);
        ELSE
            EXECUTE format('GRANT %I TO %I', lease_role, current_user);
            PERFORM taskpass.grant_rights(lease_role, rights);
        END IF;
    ELSIF modern THEN
        holder := taskpass.manifest_role(rights);
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN CONNECTION LIMIT %s PASSWORD %L VALID UNTIL %L', lease_role, connections, verifier, until);
    PERFORM taskpass.demand_exact(lease_oid, CASE WHEN modern THEN NULL ELSE rights END);
    PERFORM taskpass.demand_membership(lease_oid, (SELECT oid FROM pg_roles WHERE rolname = holder));
    UPDATE taskpass.lease l SET role = lease_oid, state = 'created', changed_at = clock_timestamp(),
           head_seq = greatest(l.head_seq, taskpass.seq(make.head)), head = taskpass.later(l.head, make.head)
     WHERE l.installation = known.installation AND l.lease = known.lease;
    RETURN lease_oid;
END $kit$;

-- Why `owner` may not be migrated as, or NULL. An owner that can log in would let a migration set its password, and what
-- an owner is a member of, a migration can become.
CREATE OR REPLACE FUNCTION taskpass.unfit_owner(owner oid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    candidate record;
BEGIN
    FOR candidate IN
        WITH RECURSIVE becomes(role) AS (
            SELECT unfit_owner.owner UNION SELECT m.roleid FROM pg_auth_members m JOIN becomes b ON m.member = b.role)
        SELECT r.*, r.oid = unfit_owner.owner AS itself FROM becomes b JOIN pg_roles r ON r.oid = b.role ORDER BY itself DESC, r.rolname
    LOOP
        IF candidate.rolcanlogin AND candidate.itself THEN
            RETURN 'can log in';
        ELSIF candidate.rolsuper OR candidate.rolcreaterole OR candidate.rolcreatedb OR candidate.rolreplication
              OR candidate.rolbypassrls OR candidate.rolcanlogin OR candidate.rolname ~ '^(pg_|taskpass_|tpm?_)'
              OR candidate.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'taskpass') THEN
            RETURN CASE WHEN candidate.itself THEN 'is SUPERUSER, CREATEROLE, CREATEDB, REPLICATION or BYPASSRLS, or owns the kit'
                        ELSE format('can become %I', candidate.rolname) END;
        END IF;
    END LOOP;
    RETURN CASE WHEN candidate IS NULL THEN 'does not exist' END;
END $kit$;

-- Refuses a migration as `owner` unless the DBA allowed it, for that long and that many at a time. Returns its name.
CREATE OR REPLACE FUNCTION taskpass.demand_owner(lease text, owner oid, seconds integer) RETURNS name
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    known record;
    unfit text := taskpass.unfit_owner(owner);
BEGIN
    IF seconds IS NULL OR seconds < 1 THEN
        RAISE EXCEPTION 'taskpass: a lease lives at least one second' USING ERRCODE = 'TP001';
    END IF;
    SELECT r.rolname, o.longest_seconds, o.most_live INTO known
      FROM pg_roles r LEFT JOIN taskpass.owner o ON o.role = r.rolname WHERE r.oid = demand_owner.owner;
    IF unfit IS NOT NULL THEN
        RAISE EXCEPTION 'taskpass: the owner % %', coalesce(known.rolname, owner::text), unfit USING ERRCODE = 'TP007';
    ELSIF known.longest_seconds IS NULL THEN
        RAISE EXCEPTION 'taskpass: % is not in taskpass.owner', known.rolname USING ERRCODE = 'TP003';
    ELSIF known.longest_seconds < seconds THEN
        RAISE EXCEPTION 'taskpass: the ceiling of % is % seconds', known.rolname, known.longest_seconds USING ERRCODE = 'TP003';
    ELSIF known.most_live <= (SELECT count(*) FROM taskpass.lease l WHERE l.owner = demand_owner.owner
                                 AND l.state IN ('created', 'enabled') AND l.lease <> demand_owner.lease) THEN
        RAISE EXCEPTION 'taskpass: the ceiling is % live migrations', known.most_live USING ERRCODE = 'TP003';
    END IF;
    RETURN known.rolname;
END $kit$;

-- Makes or re-keys the role of a migrate lease, without login. The broker starts its sessions with the setting `role`, so
-- that what they make is the owner's, and no RESET leads elsewhere (a routine like this one may not store that setting).
-- Without it they have no right at all: INHERIT FALSE also keeps the lease from taking what is the owner's for itself.
CREATE OR REPLACE FUNCTION taskpass.make_owner(lease text, owner oid, owner_name name, verifier text, seconds integer, connections integer, head text)
RETURNS oid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
    lease_oid oid;
    modern boolean := current_setting('server_version_num')::integer >= 160000;
    known taskpass.lease;
BEGIN
    INSERT INTO taskpass.lease AS l (installation, lease, state, owner)
        VALUES (taskpass.caller(), make_owner.lease, 'created', make_owner.owner) ON CONFLICT ON CONSTRAINT lease_pkey DO NOTHING;
    SELECT * INTO known FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = make_owner.lease FOR UPDATE;
    IF known.state NOT IN ('created', 'enabled') OR known.owner IS DISTINCT FROM make_owner.owner THEN
        RAISE EXCEPTION 'taskpass: the lease is closing, closed or has other rights' USING ERRCODE = 'TP006';
    END IF;
    SELECT oid INTO lease_oid FROM pg_roles WHERE rolname = lease_role;
    IF lease_oid IS NULL THEN
        IF modern THEN
            PERFORM set_config('createrole_self_grant', 'set, inherit', true);
        END IF;
        EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT', lease_role);
        SELECT oid INTO lease_oid FROM pg_roles WHERE rolname = lease_role;
        EXECUTE format('COMMENT ON ROLE %I IS %L', lease_role, lease);
        IF modern THEN
            EXECUTE format('GRANT %I TO %I WITH INHERIT FALSE, SET TRUE', owner_name, lease_role);
        ELSE
            EXECUTE format('GRANT %I TO %I', lease_role, current_user);
            EXECUTE format('GRANT %I TO %I', owner_name, lease_role);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), lease_role);
        EXECUTE format('ALTER ROLE %I SET lock_timeout = ''5s''', lease_role);
        EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''60s''', lease_role);
        EXECUTE format('ALTER ROLE %I SET idle_session_timeout = ''600s''', lease_role);
    END IF;
    EXECUTE format('ALTER ROLE %I NOLOGIN CONNECTION LIMIT %s PASSWORD %L VALID UNTIL %L', lease_role, connections, verifier,
                   clock_timestamp() + make_interval(secs => seconds));
    PERFORM taskpass.demand_exact(lease_oid, '[]');
    PERFORM taskpass.demand_membership(lease_oid, owner);
    UPDATE taskpass.lease l SET role = lease_oid, state = 'created', changed_at = clock_timestamp(),
           head_seq = greatest(l.head_seq, taskpass.seq(make_owner.head)), head = taskpass.later(l.head, make_owner.head)
     WHERE l.installation = known.installation AND l.lease = known.lease;
    RETURN lease_oid;
END $kit$;

-- ----------------------------------------------------------------------------------------------- the broker's routines

-- Creates the role of a lease without login, with exactly `rights` ([{"oid", "columns", "verbs", "sequences"}]).
CREATE OR REPLACE FUNCTION taskpass.issue(lease text, rights jsonb, verifier text, seconds integer, connections integer, head text)
RETURNS oid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $kit$
DECLARE
    wanted jsonb := taskpass.canonical(rights);
    made oid;
BEGIN
    PERFORM taskpass.demand_verifier(verifier);
    PERFORM taskpass.demand_fresh_snapshots();
    IF jsonb_array_length(wanted) = 0 OR connections IS NULL OR connections NOT BETWEEN 1 AND 50 THEN
        RAISE EXCEPTION 'taskpass: nothing to grant, or not 1 to 50 connections' USING ERRCODE = 'TP001';
    END IF;
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE;
    PERFORM taskpass.hold(wanted);
    PERFORM taskpass.demand_below_ceiling(lease, wanted, seconds);
    made := taskpass.make(lease, wanted, verifier, seconds, connections, head);
    RAISE LOG 'taskpass: issue installation=% lease=% seconds=% objects=% head=%',
        taskpass.caller(), lease, seconds, jsonb_array_length(wanted), head;
    RETURN made;
END $kit$;

-- Creates the role of a migrate lease without login. It can become `owner`, and nothing else.
CREATE OR REPLACE FUNCTION taskpass.issue_owner(lease text, owner oid, verifier text, seconds integer, connections integer, head text)
RETURNS oid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $kit$
DECLARE
    made oid;
BEGIN
    PERFORM taskpass.demand_verifier(verifier);
    PERFORM taskpass.demand_fresh_snapshots();
    IF connections IS NULL OR connections NOT BETWEEN 1 AND 50 THEN
        RAISE EXCEPTION 'taskpass: not 1 to 50 connections' USING ERRCODE = 'TP001';
    END IF;
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE;
    made := taskpass.make_owner(lease, owner, taskpass.demand_owner(lease, owner, seconds), verifier, seconds, connections, head);
    RAISE LOG 'taskpass: issue_owner installation=% lease=% seconds=% owner=% head=%',
        taskpass.caller(), lease, seconds, owner, head;
    RETURN made;
END $kit$;

-- For people: why the role may not be migrated as; '' if only the DBA's consent is missing, NULL if nothing is.
CREATE OR REPLACE FUNCTION taskpass.judge_owner(owner name) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    PERFORM taskpass.caller();
    RETURN coalesce(taskpass.unfit_owner((SELECT r.oid FROM pg_roles r WHERE r.rolname = owner)),
                    CASE WHEN NOT EXISTS (SELECT FROM taskpass.owner o WHERE o.role = judge_owner.owner) THEN '' END);
END $kit$;

-- Other limits than the defaults, and the tenant that policies see as taskpass.tenant(); before the lease is enabled.
CREATE OR REPLACE FUNCTION taskpass.bind(lease text, limits jsonb, tenant text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $kit$
BEGIN
    IF tenant = '' OR length(tenant) > 200 OR jsonb_typeof(limits) <> 'object' THEN
        RAISE EXCEPTION 'taskpass: not a tenant, or not limits' USING ERRCODE = 'TP001';
    END IF;
    UPDATE taskpass.lease l SET limits = bind.limits, tenant = bind.tenant
     WHERE l.installation = taskpass.caller() AND l.lease = bind.lease AND l.state = 'created';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'taskpass: only a lease that is not enabled yet is bound' USING ERRCODE = 'TP006';
    END IF;
    PERFORM taskpass.limit_role(taskpass.role_of(lease)::name, limits);
END $kit$;

-- For policies of row security: whose rows the session's lease may see; NULL for every login that is no live lease. It goes
-- by the login itself, which a session cannot change, and by what the broker said before the lease could log in.
CREATE OR REPLACE FUNCTION taskpass.tenant() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT l.tenant FROM taskpass.lease l JOIN pg_roles r ON r.oid = l.role
     WHERE r.rolname = session_user AND l.state = 'enabled'
$kit$;

-- Ends the sessions of the caller's live leases that are over a limit, whatever they set for themselves, two seconds
-- after the server would have done it. Works on a standby. A lease without rights on tables has no limits here.
CREATE OR REPLACE FUNCTION taskpass.overdue() RETURNS TABLE (lease text, "limit" text, pid integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    late constant interval := interval '2 seconds';
    here constant timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    SELECT o.lease, o.over, o.pid FROM (
        SELECT l.lease, a.pid, CASE
                   WHEN a.state = 'active' AND here - a.query_start > make_interval(secs => w.statement) + late THEN 'statement_seconds'
                   WHEN here - a.xact_start > make_interval(secs => w.transaction) + late THEN 'transaction_seconds'
                   WHEN a.state LIKE 'idle in%' AND here - a.state_change > make_interval(secs => w.idle_in_transaction) + late
                       THEN 'idle_in_transaction_seconds'
                   WHEN a.state = 'idle' AND here - a.state_change > make_interval(secs => w.idle) + late THEN 'idle_seconds'
               END AS over
          FROM taskpass.lease l JOIN pg_stat_activity a ON a.usesysid = l.role, taskpass.limits_of(l.limits) w
         WHERE l.installation = taskpass.caller() AND l.state = 'enabled' AND l.rights <> '[]'
         OFFSET 0) AS o  -- so that nothing is ended before it is known to be ours
     WHERE CASE WHEN o.over IS NOT NULL THEN pg_terminate_backend(o.pid) ELSE false END;
END $kit$;

-- Lets the role log in for `seconds` from now by this server's clock; also a renewal. The ceiling is asked again.
CREATE OR REPLACE FUNCTION taskpass.enable(lease text, seconds integer, head text) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s'
SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
    known taskpass.lease;
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
    lived integer;
BEGIN
    PERFORM taskpass.demand_fresh_snapshots();
    SELECT * INTO known FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = enable.lease FOR UPDATE;
    IF known.state IS NULL OR known.state NOT IN ('created', 'enabled') OR (known.rights = '[]' AND known.owner IS NULL)
       OR known.role IS DISTINCT FROM (SELECT oid FROM pg_roles WHERE rolname = lease_role) THEN
        RAISE EXCEPTION 'taskpass: the lease was not issued here, or is closing or closed' USING ERRCODE = 'TP006';
    END IF;
    lived := ceil(extract(epoch FROM clock_timestamp() - coalesce(known.started_at, clock_timestamp())));
    IF known.owner IS NULL THEN
        PERFORM taskpass.demand_below_ceiling(lease, known.rights, lived + seconds);
    ELSE
        PERFORM taskpass.demand_owner(lease, known.owner, lived + seconds);
    END IF;
    EXECUTE format('ALTER ROLE %I LOGIN VALID UNTIL %L', lease_role, until);
    UPDATE taskpass.lease l SET state = 'enabled', changed_at = clock_timestamp(),
           started_at = coalesce(known.started_at, clock_timestamp()),
           head_seq = greatest(l.head_seq, taskpass.seq(enable.head)), head = taskpass.later(l.head, enable.head)
     WHERE l.installation = known.installation AND l.lease = known.lease;
    RAISE LOG 'taskpass: enable installation=% lease=% seconds=% head=%', known.installation, lease, seconds, head;
    RETURN until;
END $kit$;

-- A lease's role that somebody renamed gets its name back: every step of closing goes by name. Refuses if there is another
-- role of that name by now, because nobody can say which one the closing would be about.
CREATE OR REPLACE FUNCTION taskpass.name_back(known oid, wanted name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    present name := (SELECT r.rolname FROM pg_roles r WHERE r.oid = known);
BEGIN
    IF present IS NULL OR present = wanted THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = wanted) THEN
        RAISE EXCEPTION 'taskpass: role % was renamed, and another role has its name', known USING ERRCODE = 'TP005',
            HINT = 'drop the role that has the name of the lease; closing is tried again';
    END IF;
    EXECUTE format('ALTER ROLE %I RENAME TO %I', present, wanted);
    RAISE LOG 'taskpass: role % was renamed to % and is named back', wanted, present;
END $kit$;

-- Forbids login, sets a password that only the closing broker knows, valid ten minutes (for the proof). Committing it is
-- the caller's next step. `role` is the oid (the last known one if the role is absent), `present` whether it exists;
-- `busy` means that another transaction holds the role's row: the lease is marked closing, nothing else was done.
CREATE OR REPLACE FUNCTION taskpass.close(lease text, verifier text, head text, OUT role oid, OUT present boolean, OUT busy boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
    stranger record;
BEGIN
    PERFORM taskpass.demand_verifier(verifier);
    PERFORM taskpass.demand_fresh_snapshots();
    -- A closing that a crash of the server undoes would be worse than a slow one.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    busy := false;
    INSERT INTO taskpass.lease AS l (installation, lease, state, head_seq, head)
        VALUES (taskpass.caller(), close.lease, 'closing', taskpass.seq(close.head), close.head)
        ON CONFLICT ON CONSTRAINT lease_pkey DO UPDATE SET state = 'closing', changed_at = clock_timestamp(),
            head_seq = greatest(l.head_seq, excluded.head_seq), head = taskpass.later(l.head, excluded.head)
        RETURNING l.role INTO role;
    PERFORM taskpass.name_back(role, lease_role);
    SELECT coalesce((SELECT r.oid FROM pg_roles r WHERE r.rolname = lease_role), role),
           EXISTS (SELECT FROM pg_roles r WHERE r.rolname = lease_role) INTO role, present;
    IF present THEN
        BEGIN
            EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD %L VALID UNTIL %L', lease_role, verifier,
                           clock_timestamp() + interval '10 minutes');
            -- Somebody with the right to it may have lent the role. A role cannot lend itself (15 and later).
            FOR stranger IN SELECT m.member::regrole::text AS name FROM pg_auth_members m
                             WHERE m.roleid = close.role AND m.member <> session_user::regrole
                               AND m.member <> ALL (taskpass.own_roles()) LOOP
                EXECUTE format('REVOKE %I FROM %s', lease_role, stranger.name);
                RAISE LOG 'taskpass: close lease=% was lent to %', lease, stranger.name;
            END LOOP;
        EXCEPTION WHEN lock_not_available OR internal_error THEN
            busy := true;
        END;
        UPDATE taskpass.lease l SET role = close.role WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = close.lease;
    END IF;
    RAISE LOG 'taskpass: close installation=% lease=% present=% busy=% head=%', taskpass.caller(), lease, present, busy, head;
END $kit$;

-- Live leases of the caller whose role is not any more what was made: another hand was at it. `why` is one word. Reads the
-- catalogue in sets, so that thousands of leases cost one look.
CREATE OR REPLACE FUNCTION taskpass.changed(OUT lease text, OUT why text) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    WITH me AS MATERIALIZED (SELECT taskpass.caller() AS installation),
    own AS MATERIALIZED (SELECT unnest(taskpass.own_roles()) AS role),
    live AS (
        SELECT l.lease, l.role, l.owner, r.rolname, me.installation,
               r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls AS privileged
          FROM me JOIN taskpass.lease l ON l.installation = me.installation LEFT JOIN pg_roles r ON r.oid = l.role
         WHERE l.state = 'enabled'),
    judged AS (
        SELECT v.lease, CASE
            WHEN v.rolname IS NULL THEN 'gone'
            WHEN v.rolname <> ('tp_' || v.installation || '_' || substr(v.lease, 5))::name THEN 'renamed'
            WHEN v.privileged THEN 'privileged'
            WHEN EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                          WHERE m.member = v.role AND m.roleid IS DISTINCT FROM v.owner
                            AND NOT starts_with(g.rolname::text, 'tpm_' || v.installation || '_')) THEN 'member'
            WHEN EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = v.role AND m.member NOT IN (SELECT own.role FROM own)) THEN 'lent'
            WHEN v.owner IS NULL AND current_setting('server_version_num')::integer >= 160000
             AND EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = v.role
                            AND d.deptype = 'a') THEN 'granted'
            END AS why
          FROM live v)
    SELECT j.lease, j.why FROM judged j WHERE j.why IS NOT NULL
$kit$;

-- Ends the sessions that are listed under the role's number and returns their process ids.
CREATE OR REPLACE FUNCTION taskpass.sweep(lease text) RETURNS integer[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    lease_oid oid := (SELECT oid FROM pg_roles WHERE rolname = (SELECT taskpass.role_of(lease))::name);
    listed integer[];
BEGIN
    IF lease_oid IS NULL THEN
        -- Only a superuser can end the sessions of a role that somebody dropped, so they are only shown.
        SELECT array_agg(a.pid) INTO listed FROM pg_stat_activity a JOIN taskpass.lease l ON l.role = a.usesysid
         WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = sweep.lease;
    ELSE
        SELECT array_agg(e.pid) INTO listed FROM (SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_stat_activity a
         WHERE a.usesysid = lease_oid OFFSET 0) AS e;
    END IF;
    RETURN coalesce(listed, '{}');
END $kit$;

-- Gives the role of a closing lease to the calling login, which needs it to end starting sessions (SET ROLE) and to roll
-- back prepared transactions: neither is possible in here. Its rights are taken away first, so that the broker's login
-- can never read anything with it. Ends with seal.
CREATE OR REPLACE FUNCTION taskpass.lend(lease text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
BEGIN
    IF NOT EXISTS (SELECT FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = lend.lease
                      AND l.state = 'closing' FOR UPDATE) THEN
        RAISE EXCEPTION 'taskpass: only the role of a closing lease is lent' USING ERRCODE = 'TP006';
    END IF;
    PERFORM taskpass.strip(lease_role);
    IF current_setting('server_version_num')::integer >= 160000 THEN
        EXECUTE format('GRANT %I TO %I WITH INHERIT FALSE, SET TRUE', lease_role, session_user);
    ELSE
        EXECUTE format('GRANT %I TO %I', lease_role, session_user);
    END IF;
END $kit$;

-- After the proof: no password, no longer lent, and no rights. Refuses a role that can log in.
CREATE OR REPLACE FUNCTION taskpass.seal(lease text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
BEGIN
    PERFORM FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = seal.lease
        AND l.state IN ('closing', 'sealed') FOR UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = lease_role AND r.rolcanlogin) THEN
        RAISE EXCEPTION 'taskpass: only a closed lease is sealed' USING ERRCODE = 'TP006';
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = lease_role) THEN
        EXECUTE format('ALTER ROLE %I PASSWORD NULL', lease_role);
        EXECUTE format('REVOKE %I FROM %I', lease_role, session_user);
        BEGIN
            PERFORM taskpass.strip(lease_role);
        EXCEPTION WHEN lock_not_available OR internal_error OR insufficient_privilege THEN
            -- Up to 15 an issue in progress may hold a table's row, and a superuser may have given what only a superuser
            -- can take. Nobody can use the rights any more; they go with the role.
            RAISE LOG 'taskpass: seal lease=% leaves the rights to clean', lease;
        END;
    END IF;
    UPDATE taskpass.lease l SET state = 'sealed', changed_at = clock_timestamp()
     WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = seal.lease;
END $kit$;

-- Removes what is left of a sealed lease. `blocked` says what stands in the way; then the role stays, without login.
CREATE OR REPLACE FUNCTION taskpass.clean(lease text, OUT cleaned boolean, OUT blocked text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $kit$
DECLARE
    lease_role name := taskpass.role_of(lease);
    lease_oid oid;
    here oid := (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    cleaned := false;
    PERFORM taskpass.demand_fresh_snapshots();
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE;
    PERFORM FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = clean.lease
        AND l.state IN ('sealed', 'cleaned') FOR UPDATE;
    IF NOT FOUND AND (EXISTS (SELECT FROM pg_roles r WHERE r.rolname = lease_role)
                      OR EXISTS (SELECT FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = clean.lease)) THEN
        RAISE EXCEPTION 'taskpass: only a sealed lease is cleaned' USING ERRCODE = 'TP006';
    END IF;
    SELECT r.oid INTO lease_oid FROM pg_roles r WHERE r.rolname = lease_role;
    IF lease_oid IS NOT NULL THEN
        IF EXISTS (SELECT FROM pg_roles r WHERE r.oid = lease_oid AND r.rolcanlogin)
           OR EXISTS (SELECT FROM pg_stat_activity a WHERE a.usesysid = lease_oid)
           OR EXISTS (SELECT FROM pg_prepared_xact() x WHERE x.ownerid = lease_oid) THEN
            RAISE EXCEPTION 'taskpass: the role can log in, or has a session or a prepared transaction' USING ERRCODE = 'TP006';
        END IF;
        BEGIN
            PERFORM taskpass.release_sequences(lease_role);
            EXECUTE format('DROP OWNED BY %I', lease_role);
            SELECT string_agg(format('%s object(s) in database %I', n, datname), ', ') INTO blocked
              FROM (SELECT d.datname, count(*) AS n FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
                     WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = lease_oid AND s.dbid <> here
                     GROUP BY d.datname ORDER BY d.datname) AS elsewhere;
            IF blocked IS NULL THEN
                EXECUTE format('DROP ROLE %I', lease_role);
            END IF;
        EXCEPTION WHEN dependent_objects_still_exist OR object_in_use OR lock_not_available OR insufficient_privilege THEN
            blocked := left(replace(SQLERRM, chr(10), ' '), 200);
        END;
        IF blocked IS NOT NULL THEN
            RAISE LOG 'taskpass: clean installation=% lease=% blocked by %', taskpass.caller(), lease, blocked;
            RETURN;
        END IF;
    END IF;
    UPDATE taskpass.lease l SET state = 'cleaned', changed_at = clock_timestamp(), rights = '[]'
     WHERE l.installation = (SELECT taskpass.caller()) AND l.lease = clean.lease;
    -- A week is longer than any effect can be late. The highest audit number is kept.
    DELETE FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.state = 'cleaned'
        AND l.changed_at < clock_timestamp() - interval '7 days'
        AND l.head_seq < (SELECT max(o.head_seq) FROM taskpass.lease o WHERE o.installation = (SELECT taskpass.caller()));
    cleaned := true;
END $kit$;

-- ------------------------------------------------------------------------------------------ the same for many at once
-- For thousands of leases that end together. Each does for every lease of a list what the routine for one does, in one
-- transaction; a lease that needs more than that is left as it is, for the routine for one.

-- The leases of a list with their roles, if there are any; refuses a list that is malformed or too long.
CREATE OR REPLACE FUNCTION taskpass.roles_of(leases text[]) RETURNS TABLE (lease text, role oid, name name, can_login boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    prefix text := 'tp_' || taskpass.caller() || '_';
BEGIN
    IF coalesce(cardinality(leases), 0) NOT BETWEEN 1 AND 5000 OR EXISTS (SELECT FROM unnest(leases) AS g(lease)
            WHERE g.lease IS NULL OR g.lease !~ '^lse_[0-7][0-9a-hjkmnp-tv-z]{25}$') THEN
        RAISE EXCEPTION 'taskpass: not a list of 1 to 5000 lease ids' USING ERRCODE = 'TP001';
    END IF;
    RETURN QUERY SELECT g.lease, r.oid, r.rolname, r.rolcanlogin FROM (SELECT DISTINCT unnest(leases)) AS g(lease)
        LEFT JOIN pg_roles r ON r.rolname = (prefix || substr(g.lease, 5))::name ORDER BY g.lease;
END $kit$;

-- Those that have a role, with its maker: NULL for what the kit made itself (up to 15, and before there were makers).
CREATE OR REPLACE FUNCTION taskpass.made_by(leases text[]) RETURNS TABLE (lease text, name name, maker text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $kit$
    WITH makers AS MATERIALIZED (SELECT r.oid, substr(r.rolname, 14) AS maker FROM pg_roles r
                                  WHERE r.rolname ~ '^taskpass_kit_[0-9a-hjkmnp-tv-z]$'),
    made AS MATERIALIZED (SELECT m.roleid, k.maker FROM pg_auth_members m JOIN makers k ON k.oid = m.member WHERE m.admin_option)
    SELECT g.lease, g.name, max(d.maker) FROM taskpass.roles_of(leases) AS g LEFT JOIN made d ON d.roleid = g.role
     WHERE g.role IS NOT NULL GROUP BY g.lease, g.name
$kit$;

-- As close. One password serves for all of them: only the closing broker knows it, and none of them may log in.
CREATE OR REPLACE FUNCTION taskpass.close_many(leases text[], verifier text, head text)
RETURNS TABLE (lease text, role oid, busy boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms'
SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
DECLARE
    me text := taskpass.caller();
    until timestamptz := clock_timestamp() + interval '10 minutes';
    own oid[] := taskpass.own_roles();
    held name[] := '{}';
    more name[];
    name name;
    item record;
BEGIN
    PERFORM taskpass.demand_verifier(verifier);
    PERFORM taskpass.demand_fresh_snapshots();
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO taskpass.lease AS l (installation, lease, state, role, head_seq, head)
        SELECT me, g.lease, 'closing', g.role, taskpass.seq(close_many.head), close_many.head FROM taskpass.roles_of(leases) AS g
        ON CONFLICT ON CONSTRAINT lease_pkey DO UPDATE SET state = 'closing', changed_at = clock_timestamp(),
            role = coalesce(excluded.role, l.role), head_seq = greatest(l.head_seq, excluded.head_seq),
            head = taskpass.later(l.head, excluded.head);
    FOR item IN SELECT g.maker, array_agg(g.name) AS names FROM taskpass.made_by(leases) AS g GROUP BY g.maker LOOP
        IF item.maker IS NOT NULL THEN
            EXECUTE format('SELECT taskpass.maker_%s(''forbid'', $1, $2, $3)', item.maker) INTO more USING item.names, verifier, until;
            held := held || more;
            CONTINUE;
        END IF;
        FOREACH name IN ARRAY item.names LOOP
            BEGIN
                EXECUTE format('ALTER ROLE %I NOLOGIN PASSWORD %L VALID UNTIL %L', name, verifier, until);
            EXCEPTION WHEN lock_not_available OR internal_error THEN
                held := held || name;
            END;
        END LOOP;
    END LOOP;
    RETURN QUERY SELECT g.lease, g.role, coalesce(g.name = ANY (held), false) FROM taskpass.roles_of(leases) AS g;
    FOR item IN SELECT m.roleid::regrole::text AS role, m.member::regrole::text AS name
                  FROM taskpass.roles_of(leases) AS g JOIN pg_auth_members m ON m.roleid = g.role
                 WHERE m.member <> session_user::regrole AND m.member <> ALL (own) LOOP
        EXECUTE format('REVOKE %s FROM %s', item.role, item.name);
        RAISE LOG 'taskpass: close role=% was lent to %', item.role, item.name;
    END LOOP;
    RAISE LOG 'taskpass: close installation=% leases=% head=%', me, array_to_string(leases, ','), head;
END $kit$;

-- As sweep: one scan for all roles.
CREATE OR REPLACE FUNCTION taskpass.sweep_many(leases text[]) RETURNS TABLE (lease text, pid integer)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT e.lease, e.pid FROM (SELECT g.lease, a.pid, pg_terminate_backend(a.pid)
        FROM taskpass.roles_of(leases) AS g JOIN pg_stat_activity a ON a.usesysid = g.role OFFSET 0) AS e
$kit$;

-- The numbers of those roles that own a prepared transaction.
CREATE OR REPLACE FUNCTION taskpass.prepared_many(leases text[]) RETURNS TABLE (lease text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT DISTINCT g.lease FROM pg_prepared_xact() x JOIN taskpass.roles_of(leases) AS g ON g.role = x.ownerid
$kit$;

-- Ends those of the sessions `pids` that are still starting and have become a lease's role; the others refuse it, because
-- they are another role's or no role's yet, and will meet the login check. Returns those that were ended. A session of a
-- living lease that takes longer to start than the broker waits is among them: it may connect again.
CREATE OR REPLACE FUNCTION taskpass.fence(pids integer[]) RETURNS integer[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
DECLARE
    item record;
    ended integer[] := '{}';
BEGIN
    FOR item IN SELECT l.pid FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE l.locktype = 'virtualxid' AND l.granted AND a.usesysid IS NULL AND l.pid = ANY (pids) LOOP
        BEGIN
            IF pg_terminate_backend(item.pid) THEN
                ended := ended || item.pid;
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
    RETURN ended;
END $kit$;

-- As seal, but without a change of each role, which from 16 on costs the more the more roles the kit has made: the password
-- that nobody knows any more, and the rights that nobody can use, go with the role, and the password ends by itself in
-- ten minutes.
CREATE OR REPLACE FUNCTION taskpass.seal_many(leases text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $kit$
BEGIN
    IF EXISTS (SELECT FROM taskpass.roles_of(leases) AS g
               LEFT JOIN taskpass.lease l ON l.installation = taskpass.caller() AND l.lease = g.lease
               WHERE g.can_login OR l.state IS NULL OR l.state NOT IN ('closing', 'sealed')) THEN
        RAISE EXCEPTION 'taskpass: only closed leases are sealed' USING ERRCODE = 'TP006';
    END IF;
    UPDATE taskpass.lease l SET state = 'sealed', changed_at = clock_timestamp()
     WHERE l.installation = taskpass.caller() AND l.lease = ANY (leases);
END $kit$;

-- As clean, for those that nothing stands in the way of; returns them. Any error leaves all of them to clean.
CREATE OR REPLACE FUNCTION taskpass.clean_many(leases text[]) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $kit$
DECLARE
    here oid := (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
    ready text[];
    names text;
    item record;
BEGIN
    PERFORM taskpass.demand_fresh_snapshots();
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE;
    SELECT array_agg(g.lease), string_agg(quote_ident(g.name), ', ') INTO ready, names FROM taskpass.roles_of(leases) AS g
      JOIN taskpass.lease l ON l.installation = taskpass.caller() AND l.lease = g.lease AND l.state = 'sealed'
     WHERE NOT g.can_login
       AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.usesysid = g.role)
       AND NOT EXISTS (SELECT FROM pg_prepared_xact() x WHERE x.ownerid = g.role)
       AND NOT EXISTS (SELECT FROM pg_shdepend s WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = g.role
                          AND (s.dbid NOT IN (0, here) OR s.deptype = 'o'));
    IF ready IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        EXECUTE 'DROP OWNED BY ' || names;
        FOR item IN SELECT g.maker, array_agg(g.name) AS names FROM taskpass.made_by(ready) AS g GROUP BY g.maker LOOP
            IF item.maker IS NOT NULL THEN
                EXECUTE format('SELECT taskpass.maker_%s(''drop'', $1, NULL, NULL)', item.maker) USING item.names;
            ELSE
                EXECUTE 'DROP ROLE ' || (SELECT string_agg(quote_ident(r.name), ', ') FROM unnest(item.names) AS r(name));
            END IF;
        END LOOP;
    EXCEPTION WHEN dependent_objects_still_exist OR object_in_use OR lock_not_available OR insufficient_privilege
                OR internal_error THEN
        RETURN;
    END;
    UPDATE taskpass.lease l SET state = 'cleaned', changed_at = clock_timestamp(), rights = '[]'
     WHERE l.installation = taskpass.caller() AND l.lease = ANY (ready);
    RETURN QUERY SELECT unnest(ready);
END $kit$;

-- Drops what held the rights of leases that ended and was not used for `seconds`. Does nothing while somebody issues.
CREATE OR REPLACE FUNCTION taskpass.tidy(seconds integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
BEGIN
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE NOWAIT;
    PERFORM taskpass.drop_unused(clock_timestamp() - make_interval(secs => seconds));
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END $kit$;

-- The highest epoch and audit number of the caller's installation that came here.
CREATE OR REPLACE FUNCTION taskpass.seen(OUT epoch bigint, OUT audit_seq bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT max(b.epoch), (SELECT coalesce(max(l.head_seq), 0) FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()))
      FROM taskpass.broker b WHERE b.installation = (SELECT taskpass.caller())
$kit$;

-- Raises the epoch; never lowers it.
CREATE OR REPLACE FUNCTION taskpass.set_epoch(epoch bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    UPDATE taskpass.broker b SET epoch = greatest(b.epoch, set_epoch.epoch)
     WHERE b.installation = (SELECT taskpass.caller()) RETURNING b.epoch
$kit$;

-- A throw-away role without any table that can log in for one minute, to show that the proof of closing can fail.
CREATE OR REPLACE FUNCTION taskpass.rehearse(lease text, verifier text, head text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $kit$
BEGIN
    PERFORM taskpass.demand_verifier(verifier);
    PERFORM taskpass.demand_fresh_snapshots();
    LOCK TABLE taskpass.gate IN EXCLUSIVE MODE;
    IF (SELECT count(*) FROM taskpass.lease l WHERE l.installation = (SELECT taskpass.caller()) AND l.rights = '[]' AND l.owner IS NULL
           AND l.state = 'created' AND l.lease <> rehearse.lease) >= 5 THEN
        RAISE EXCEPTION 'taskpass: five rehearsals are not closed yet' USING ERRCODE = 'TP003';
    END IF;
    -- As many sessions as a drill holds open at a time, and its control.
    PERFORM taskpass.make(lease, '[]', verifier, 60, 10, head);
    EXECUTE format('ALTER ROLE %I LOGIN', taskpass.role_of(lease));
    RAISE LOG 'taskpass: rehearse installation=% lease=% head=%', taskpass.caller(), lease, head;
END $kit$;

CREATE OR REPLACE FUNCTION taskpass.version() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $kit$
    SELECT max(v.version) FROM taskpass.kit_version v
$kit$;

-- For DBAs: what each lease is here and now. Only the owner of this schema and superusers may read it until the DBA grants
-- it to somebody. `role` is the present name, so a role that was renamed by hand is seen; `until` is the target's own end.
CREATE VIEW taskpass.leases AS
SELECT l.lease, l.installation, r.rolname AS role, l.state, coalesce(r.rolcanlogin, false) AS can_login,
       l.started_at AS since, CASE WHEN l.state = 'enabled' THEN r.rolvaliduntil END AS until, l.head AS audit_head,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = l.role) AS sessions,
       jsonb_array_length(l.rights) AS objects, l.changed_at
  FROM taskpass.lease l LEFT JOIN pg_roles r ON r.oid = l.role;

-- The routines run as taskpass_kit and are nobody's to call until they are granted.
GRANT CREATE ON SCHEMA taskpass TO taskpass_kit;
DO $do$ DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'taskpass'::regnamespace
                      AND pg_get_userbyid(p.proowner) !~ '^taskpass_kit_[0-9a-hjkmnp-tv-z]$' LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO taskpass_kit', routine);
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', routine);
    END LOOP;
END $do$;
-- Whoever a policy applies to must be able to run it; nobody can name it, because the schema is nobody's to use.
GRANT EXECUTE ON FUNCTION taskpass.tenant() TO PUBLIC;
REVOKE CREATE ON SCHEMA taskpass FROM taskpass_kit;
INSERT INTO taskpass.kit_version (version) VALUES (2) ON CONFLICT (version) DO NOTHING;
