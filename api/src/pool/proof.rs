//! The right-database proof (rule 5).

use std::collections::HashMap;

use gmah_shared::catalog::TenantDetail;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// What a connection failed to prove.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It leads to another database than the catalog says.
    #[error("connected to database {0}")]
    OtherDatabase(String),
    /// There is no identity row, or more than one, or it is tombstoned.
    #[error("no valid identity row")]
    NoIdentity,
    /// The row names another organisation or another placement.
    #[error("identity row names another organisation or placement")]
    OtherIdentity,
    /// The question failed.
    #[error("{0} could not be read")]
    Query(&'static str, #[source] tokio_postgres::Error),
}

/// What a connection says of itself.
#[derive(Debug)]
pub struct Proved {
    /// Highest migration of each set; none in a database that was never migrated.
    pub schema: HashMap<String, i32>,
    /// False on a member of a cluster that only follows.
    pub takes_writes: bool,
}

const PLACE: &str = "select current_database()::text, current_setting('transaction_read_only') = 'off'";
/// One row by its unique index; two are asked for so that a second would be seen.
const IDENTITY: &str =
    "select organization_id, placement from gmah_identity where tombstoned_at is null limit 2";
const SCHEMA: &str = "select set_name, version from schema_versions()";

/// Asks the database who it is and compares with the catalog row. Most connections are opened for one request, which waits for
/// it: all questions are sent at once. Each is small, because a new session reads all that it needs of the catalogs for the
/// first time.
///
/// # Errors
/// [`ProofError`]; then the connection must not be used for anything.
pub async fn prove(client: &Client, detail: &TenantDetail) -> Result<Proved, ProofError> {
    let (place, identity, schema) = futures::join!(
        client.query_typed_one(PLACE, &[]),
        client.query_typed(IDENTITY, &[]),
        client.query_typed(SCHEMA, &[])
    );
    let place = place.map_err(|e| ProofError::Query("the name of the database", e))?;
    let database: String = place.get(0);
    if database != detail.placement.database {
        return Err(ProofError::OtherDatabase(database));
    }
    let rows = match identity {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => return Err(ProofError::NoIdentity),
        Err(e) => return Err(ProofError::Query("the identity", e)),
    };
    let [row] = rows.as_slice() else {
        return Err(ProofError::NoIdentity);
    };
    let proved = row.get::<_, uuid::Uuid>(0) == detail.tenant.id.as_uuid()
        && row.get::<_, i32>(1) == detail.placement.number;
    if !proved {
        return Err(ProofError::OtherIdentity);
    }
    let schema = match schema {
        Ok(rows) => rows.iter().map(|r| (r.get(0), r.get(1))).collect(),
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_FUNCTION) => HashMap::new(),
        Err(e) => return Err(ProofError::Query("the schema", e)),
    };
    Ok(Proved { schema, takes_writes: place.get(1) })
}
