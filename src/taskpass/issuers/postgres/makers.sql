-- 16 and later: 32 roles that make the accounts of leases, each those whose lease's id ends with its letter.
-- There a role with CREATEROLE may change what it is an admin of, and to know that the server walks through everything
-- it is a member of: with one maker, forbidding each of 10,000 logins takes tens of milliseconds (docs/adr/0018). A maker
-- can do nothing but what its routine says, which only taskpass_kit may call; up to 15 there are none.
DO $do$ DECLARE
    maker name;
    letter text;
    owned boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    IF current_setting('server_version_num')::integer < 160000 THEN
        RETURN;
    END IF;
    FOREACH letter IN ARRAY string_to_array('0123456789abcdefghjkmnpqrstvwxyz', NULL) LOOP
        maker := 'taskpass_kit_' || letter;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = maker) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN CREATEROLE', maker);
        END IF;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = maker
                      AND (rolsuper OR rolcanlogin OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcreaterole)) THEN
            RAISE EXCEPTION 'taskpass: there is a role % that is not NOLOGIN CREATEROLE only', maker;
        END IF;
        IF NOT owned THEN
            EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT TRUE, SET TRUE', maker);
        END IF;
        EXECUTE format('GRANT CREATE ON SCHEMA taskpass TO %I', maker);
        EXECUTE format($make$
            CREATE OR REPLACE FUNCTION taskpass.maker_%s(verb text, roles name[], verifier text, until timestamptz)
            RETURNS name[]
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET createrole_self_grant = ''
            SET timezone = 'UTC' SET datestyle = 'ISO' AS $kit$
            DECLARE
                role name;
                held name[] := '{}';
            BEGIN
                IF EXISTS (SELECT FROM unnest(roles) AS r(name) WHERE r.name IS NULL OR NOT starts_with(r.name::text, 'tp_')) THEN
                    RAISE EXCEPTION 'taskpass: not the roles of leases' USING ERRCODE = 'TP001';
                END IF;
                IF verb = 'drop' THEN
                    EXECUTE 'DROP ROLE ' || (SELECT string_agg(quote_ident(r.name), ', ') FROM unnest(roles) AS r(name));
                    RETURN held;
                END IF;
                FOREACH role IN ARRAY roles LOOP
                    IF verb = 'make' THEN
                        EXECUTE format('CREATE ROLE %%I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT', role);
                        EXECUTE format('GRANT %%I TO taskpass_kit WITH ADMIN TRUE, INHERIT TRUE, SET TRUE', role);
                    ELSIF verb = 'forbid' THEN
                        BEGIN
                            EXECUTE format('ALTER ROLE %%I NOLOGIN PASSWORD %%L VALID UNTIL %%L', role, verifier, until);
                        EXCEPTION WHEN lock_not_available OR internal_error THEN
                            held := held || role;
                        END;
                    ELSE
                        RAISE EXCEPTION 'taskpass: makers cannot do that' USING ERRCODE = 'TP001';
                    END IF;
                END LOOP;
                RETURN held;
            END $kit$ $make$, letter);
        EXECUTE format('ALTER FUNCTION taskpass.maker_%s OWNER TO %I', letter, maker);
        EXECUTE format('REVOKE ALL ON FUNCTION taskpass.maker_%s FROM PUBLIC', letter);
        EXECUTE format('GRANT EXECUTE ON FUNCTION taskpass.maker_%s TO taskpass_kit', letter);
        EXECUTE format('REVOKE CREATE ON SCHEMA taskpass FROM %I', maker);
        IF NOT owned THEN
            EXECUTE format('REVOKE %I FROM CURRENT_USER', maker);
        END IF;
    END LOOP;
END $do$;
