-- What every enrolled login may call. It is granted to all of them, because the routines were made anew.
DO $do$ DECLARE
    login name;
BEGIN
    FOR login IN SELECT b.login FROM taskpass.broker b JOIN pg_roles r ON r.rolname = b.login ORDER BY 1 LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA taskpass TO %I', login);
        EXECUTE format('GRANT SELECT ON taskpass.ceiling, taskpass.owner, taskpass.kit_version TO %I', login);
        EXECUTE format('GRANT EXECUTE ON FUNCTION taskpass.issue, taskpass.enable, taskpass.close, taskpass.sweep, taskpass.lend,'
                       ' taskpass.bind, taskpass.overdue, taskpass.seal, taskpass.clean, taskpass.tidy, taskpass.seen, taskpass.set_epoch,'
                       ' taskpass.close_many, taskpass.sweep_many, taskpass.prepared_many, taskpass.fence, taskpass.seal_many,'
                       ' taskpass.clean_many,'
                       ' taskpass.rehearse, taskpass.version, taskpass.changed, taskpass.issue_owner, taskpass.judge_owner TO %I', login);
    END LOOP;
END $do$;
DO $do$ DECLARE
    login name;
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO taskpass_kit WITH GRANT OPTION', current_database());
    FOR login IN SELECT b.login FROM taskpass.broker b JOIN pg_roles r ON r.rolname = b.login ORDER BY 1 LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), login);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'taskpass: not allowed to grant CONNECT on this database';
END $do$;
