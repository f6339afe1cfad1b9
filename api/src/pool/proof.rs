//! The right-database proof (rule 5).

use gmah_shared::catalog::TenantDetail;
use tokio_postgres::Client;

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
    #[error("identity could not be read")]
    Query(#[from] tokio_postgres::Error),
}

/// Asks the database who it is and compares with the catalog row.
///
/// # Errors
/// [`ProofError`]; then the connection must not be used for anything.
pub async fn prove(client: &Client, detail: &TenantDetail) -> Result<(), ProofError> {
    let row = client.query("select current_database()::text", &[]).await?;
    let database: String = row.first().ok_or(ProofError::NoIdentity)?.get(0);
    if database != detail.placement.database {
        return Err(ProofError::OtherDatabase(database));
    }
    // One row by its unique index; two are asked for so that a second would be seen.
    let identity = client
        .query(
            "select organization_id, placement from gmah_identity where tombstoned_at is null limit 2",
            &[],
        )
        .await;
    let rows = match identity {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => {
            return Err(ProofError::NoIdentity);
        }
        Err(e) => return Err(e.into()),
    };
    let [row] = rows.as_slice() else {
        return Err(ProofError::NoIdentity);
    };
    let proved = row.get::<_, uuid::Uuid>(0) == detail.tenant.id.as_uuid()
        && row.get::<_, i32>(1) == detail.placement.number;
    if proved { Ok(()) } else { Err(ProofError::OtherIdentity) }
}
