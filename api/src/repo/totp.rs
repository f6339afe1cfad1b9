//! Second factors: secrets of one-time passwords, and codes for when the device is lost.

use gmah_shared::secret::data::Place;
use uuid::Uuid;

use crate::db::{DbError, Query};

/// A second factor of a user.
#[derive(Debug)]
pub struct Factor {
    /// Sealed.
    pub secret: Vec<u8>,
    /// Whether it is asked for.
    pub is_confirmed: bool,
}

/// Where a user's secret belongs.
pub fn place(user: Uuid) -> Place {
    Place { table: "user_totp", column: "secret", row: user }
}

/// The second factor of a user.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: &mut impl Query, user: Uuid) -> Result<Option<Factor>, DbError> {
    let rows = db.query(GET, &[&user]).await?;
    Ok(rows.first().map(|r| Factor { secret: r.get("secret"), is_confirmed: r.get("is_confirmed") }))
}

/// Stores a secret that is not asked for yet; false when one is.
///
/// # Errors
/// [`DbError`].
pub async fn begin(tx: &mut impl Query, user: Uuid, secret: &[u8]) -> Result<bool, DbError> {
    Ok(tx.execute(BEGIN, &[&user, &secret]).await? == 1)
}

/// Uses the code of a time step; false when it, or a later one, was used before.
///
/// # Errors
/// [`DbError`].
pub async fn use_step(tx: &mut impl Query, user: Uuid, step: i64) -> Result<bool, DbError> {
    Ok(tx.execute(USE_STEP, &[&user, &step]).await? == 1)
}

/// From now on it is asked for; these are the codes for when the device is lost.
///
/// # Errors
/// [`DbError`].
pub async fn confirm(tx: &mut impl Query, user: Uuid, codes: &[Vec<u8>]) -> Result<(), DbError> {
    tx.execute(CONFIRM, &[&user]).await?;
    tx.execute(PUT_CODES, &[&user, &codes]).await.map(drop)
}

/// Uses a code for when the device is lost; false when it is none.
///
/// # Errors
/// [`DbError`].
pub async fn use_code(tx: &mut impl Query, user: Uuid, hash: &[u8]) -> Result<bool, DbError> {
    Ok(tx.execute(USE_CODE, &[&user, &hash]).await? == 1)
}

/// Removes a user's second factor; false when there is none.
///
/// # Errors
/// [`DbError`].
pub async fn delete(tx: &mut impl Query, user: Uuid) -> Result<bool, DbError> {
    Ok(tx.execute(DELETE, &[&user]).await? == 1)
}

/// With its lock: what is confirmed is what was proved.
pub(super) const GET: &str =
    "select secret, confirmed_at is not null as is_confirmed from user_totp where user_id = $1 for update";
pub(super) const BEGIN: &str = include_str!("sql/totp/begin.sql");
pub(super) const USE_STEP: &str = "update user_totp set last_step = $2 where user_id = $1 and last_step < $2";
pub(super) const CONFIRM: &str = "update user_totp set confirmed_at = now() where user_id = $1";
pub(super) const PUT_CODES: &str =
    "insert into recovery_codes (user_id, hash) select $1, unnest($2::bytea[]) on conflict do nothing";
pub(super) const USE_CODE: &str = "delete from recovery_codes where user_id = $1 and hash = $2";
pub(super) const DELETE: &str = "delete from user_totp where user_id = $1";
