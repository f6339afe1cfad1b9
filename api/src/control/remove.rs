//! Taking away what an organisation has on its server: only what carries its mark, and nothing that is another's.

use gmah_shared::pg::quote_identifier;
use gmah_shared::tenant::TenantId;
use tokio_postgres::Client;

use super::{ControlError, During as _};

/// What a role is known by: the comment that it was created with.
pub(crate) fn mark(id: TenantId) -> String {
    format!("gmah organisation {id}")
}

/// Drops a database that belongs to an organisation's role, with whoever is in it. Answers whether it was there.
///
/// # Errors
/// [`ControlError::Foreign`] when it belongs to somebody else; a prepared transaction or a subscription in it is an
/// error of PostgreSQL, which names it.
pub(crate) async fn drop_database(
    server: &Client,
    database: &str,
    id: TenantId,
) -> Result<bool, ControlError> {
    let what = "dropping the database";
    let found = server
        .query_opt(
            "select shobj_description(datdba, 'pg_authid') as mark from pg_database where datname = $1",
            &[&database],
        )
        .await
        .during(what)?;
    let Some(found) = found else { return Ok(false) };
    if found.get::<_, Option<String>>("mark").as_deref() != Some(&mark(id)) {
        return Err(ControlError::Foreign(format!("the database {database} is not this organisation's")));
    }
    server
        .batch_execute(&format!("drop database if exists {} with (force)", quote_identifier(database)))
        .await
        .during(what)?;
    Ok(true)
}

/// Drops an organisation's role. Answers whether it was there.
///
/// # Errors
/// [`ControlError::Foreign`] when it has another's mark; an error of PostgreSQL while something belongs to it.
pub(crate) async fn drop_role(server: &Client, role: &str, id: TenantId) -> Result<bool, ControlError> {
    let what = "dropping the role";
    let found = server
        .query_opt(
            "select shobj_description(oid, 'pg_authid') as mark from pg_roles where rolname = $1",
            &[&role],
        )
        .await
        .during(what)?;
    let Some(found) = found else { return Ok(false) };
    if found.get::<_, Option<String>>("mark").as_deref() != Some(&mark(id)) {
        return Err(ControlError::Foreign(format!("the role {role} is not this organisation's")));
    }
    server.batch_execute(&format!("drop role if exists {}", quote_identifier(role))).await.during(what)?;
    Ok(true)
}
