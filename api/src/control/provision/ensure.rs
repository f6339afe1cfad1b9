//! What an organisation has on its server: each function finds out what is there, makes what is missing, and refuses what is
//! somebody else's.

use gmah_shared::migrate::MigrationSet;
use gmah_shared::pg::{quote_identifier, quote_literal, verifier_of_random};
use gmah_shared::tenant::TenantId;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::Reserved;
use crate::control::remove::mark;
use crate::control::servers::{Access, TENANT_GROUP};
use crate::control::{ControlError, During as _, template};

/// One runner on the server as well: what a killed one had begun there (`CREATE DATABASE`) goes on until the server
/// notices, and holds this until then. Ends with the session.
pub(crate) async fn hold_on_server(server: &Client, id: TenantId) -> Result<(), ControlError> {
    let what = "waiting for an earlier run on the server";
    server.batch_execute("set lock_timeout = '30s'").await.during(what)?;
    server.execute("select pg_advisory_lock(hashtextextended($1, 0))", &[&mark(id)]).await.during(what)?;
    Ok(())
}

/// The role, with its mark and the password that the master holds.
pub(crate) async fn ensure_role(server: &Client, r: &Reserved) -> Result<(), ControlError> {
    let what = "creating the role";
    let mark = mark(r.id);
    let found = server
        .query_opt(
            "select shobj_description(oid, 'pg_authid') as mark from pg_roles where rolname = $1",
            &[&r.role],
        )
        .await
        .during(what)?;
    let role = quote_identifier(&r.role);
    // The server gets a verifier and never the password: its log may show statements.
    let verifier = quote_literal(&verifier_of_random(&r.role_password));
    // For whoever enters with it: the api says its own, shorter ones when it connects.
    let bounds = format!(
        "alter role {role} set statement_timeout = '60s';
         alter role {role} set idle_in_transaction_session_timeout = '60s';
         alter role {role} set lock_timeout = '15s';
         do $$ begin
             -- Of a node that was killed nobody waits for the statement that it had begun (PostgreSQL 14).
             if current_setting('server_version_num')::int >= 140000 then
                 execute format('alter role %I set client_connection_check_interval = %L', {}, '1s');
             end if;
         end $$",
        quote_literal(&r.role)
    );
    let rights = "login inherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls";
    match found {
        Some(row) if row.get::<_, Option<String>>("mark").as_deref() != Some(&mark) => {
            Err(ControlError::Foreign(format!("a role {} exists and is not this organisation's", r.role)))
        }
        Some(_) => server
            .batch_execute(&format!(
                "alter role {role} with {rights} connection limit -1 valid until 'infinity' password {verifier};
                 revoke {TENANT_GROUP} from {role}; grant {TENANT_GROUP} to {role}; {bounds}"
            ))
            .await
            .during(what),
        None => server
            .batch_execute(&format!(
                "begin; create role {role} with {rights} password {verifier} in role {TENANT_GROUP};
                 comment on role {role} is {}; {bounds}; commit",
                quote_literal(&mark)
            ))
            .await
            .during(what),
    }
}

/// Takes a role out of every group but the organisations'. What another role has granted stays, and is an error.
pub(crate) async fn only_in_the_group(server: &Client, role: &str) -> Result<(), ControlError> {
    let role = quote_literal(role);
    let leave = format!(
        "do $$ declare g record; begin
             for g in select m.roleid::regrole as name from pg_auth_members m
                 where m.member = {role}::regrole and m.roleid <> '{TENANT_GROUP}'::regrole
             loop
                 execute format('revoke %s from %I', g.name, {role});
                 if exists (select from pg_auth_members m
                            where m.member = {role}::regrole and m.roleid = g.name) then
                     raise exception 'it is still in the group %', g.name;
                 end if;
             end loop;
         end $$"
    );
    server.batch_execute(&leave).await.during("taking the role out of other groups")
}

/// Whether the role enters its database with the password that the master holds. That it may not come from here at all says nothing
/// of its password.
pub(crate) async fn enters(access: &Access, r: &Reserved) -> Result<bool, ControlError> {
    match access.connect_as(&r.database, &r.role, &r.role_password).await {
        Ok(_) => Ok(true),
        Err(ControlError::Database { cause, .. }) if cause.code() == Some(&SqlState::INVALID_PASSWORD) => {
            Ok(false)
        }
        Err(ControlError::Database { cause, .. })
            if cause.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) =>
        {
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

/// The database, owned by the role that carries the mark.
pub(crate) async fn ensure_database(
    access: &Access,
    server: &Client,
    r: &Reserved,
    sets: &[&MigrationSet<'_>],
) -> Result<(), ControlError> {
    let found = server
        .query_opt(
            "select pg_get_userbyid(datdba) = $2 as ours from pg_database where datname = $1",
            &[&r.database, &r.role],
        )
        .await
        .during("looking for the database")?;
    match found {
        Some(row) if !row.get::<_, bool>("ours") => {
            return Err(ControlError::Foreign(format!(
                "a database {} exists and is not this organisation's",
                r.database
            )));
        }
        Some(_) => {}
        None => {
            if !template::take_ready(server, sets, &r.database, &r.role).await? {
                let template = template::ensure(access, server, sets).await?;
                template::copy(server, &template, &r.database, &r.role).await?;
            }
        }
    }
    template::open(server, &r.database).await
}

/// The identity row of rule 5.
pub(crate) async fn ensure_identity(db: &Client, r: &Reserved) -> Result<(), ControlError> {
    let what = "writing the identity row";
    db.execute(
        "insert into gmah_identity (organization_id, placement) values ($1, $2) on conflict do nothing",
        &[&r.id.as_uuid(), &r.placement],
    )
    .await
    .during(what)?;
    let row = db.query_one("select organization_id, placement from gmah_identity", &[]).await.during(what)?;
    if row.get::<_, Uuid>(0) == r.id.as_uuid() && row.get::<_, i32>(1) == r.placement {
        Ok(())
    } else {
        Err(ControlError::Foreign(format!("database {} has another organisation's identity", r.database)))
    }
}
