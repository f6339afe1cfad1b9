//! Whether a new organisation has exactly the rows that were read for it.

use futures::StreamExt as _;
use gmah_shared::pg::quote_identifier;
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::IsolationLevel;

use super::Part;
use crate::control::portable::{open, sealed_of};
use crate::control::{Control, ControlError, During as _};

/// Of a set of rows, in whatever order: the sum of their SHA-256, as four numbers of 64 bits, and which columns they have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    pub(super) columns: Vec<String>,
    pub(super) rows: u64,
    sum: [u64; 4],
}

impl Fingerprint {
    pub(super) fn of(columns: &[String]) -> Self {
        Self { columns: columns.to_vec(), ..Self::default() }
    }

    /// Adds a row of a table, but for whoever is let in: the import makes that user, or another administrator of one.
    pub(super) fn add(&mut self, table: &str, admin_email: &str, row: &Value) {
        if table == "users" && row["email"] == admin_email {
            return;
        }
        let hash = digest::digest(&digest::SHA256, row.to_string().as_bytes());
        for (sum, piece) in self.sum.iter_mut().zip(hash.as_ref().chunks_exact(8)) {
            let piece = piece.iter().fold(0_u64, |whole, byte| (whole << 8) | u64::from(*byte));
            *sum = sum.wrapping_add(piece);
        }
        self.rows += 1;
    }
}

impl Control {
    /// Reads what the organisation has now, as of one moment; answers what is other than was read for it.
    pub(super) async fn compare(&self, part: &Part) -> Result<Option<String>, ControlError> {
        let what = "comparing";
        let tenant = self.tenant(&part.slug).await?;
        let keys = self.data_keys(tenant.id).await?;
        let mut db = self.access(tenant.server_id).await?.connect(&tenant.database).await?;
        let tx = db
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .during(what)?;
        tx.batch_execute("set local timezone = 'UTC'; set local statement_timeout = '1h'")
            .await
            .during(what)?;
        let mut others = Vec::new();
        for (table, wanted) in &part.fingerprints {
            let quoted: Vec<_> = wanted.columns.iter().map(|c| quote_identifier(c)).collect();
            let sql = format!(
                "select to_jsonb(r) from (select {} from {}) r",
                quoted.join(", "),
                quote_identifier(table)
            );
            let sealed = sealed_of(table);
            let mut found = Fingerprint::of(&wanted.columns);
            let rows = tx.query_raw(sql.as_str(), std::iter::empty::<i32>()).await.during(what)?;
            let mut rows = std::pin::pin!(rows);
            while let Some(row) = rows.next().await {
                let mut row: Value = row.during(what)?.get(0);
                if let Some(object) = row.as_object_mut() {
                    open(object, &keys, &sealed)?;
                }
                found.add(table, &part.admin_email, &row);
            }
            if &found != wanted {
                others.push(format!("{table}: {} rows there, {} here", wanted.rows, found.rows));
            }
        }
        if others.is_empty() {
            return Ok(None);
        }
        let others = others.join("; ");
        Ok(Some(format!("{} has other rows than were read for it: {others}", part.slug)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fingerprint_is_of_the_rows_and_not_of_their_order() {
        let of = |rows: &[Value]| {
            let mut f = Fingerprint::of(&[]);
            rows.iter().for_each(|r| f.add("t", "", r));
            f
        };
        let (a, b) = (json!({"a": 1}), json!({"a": 2}));
        assert_eq!(of(&[a.clone(), b.clone()]), of(&[b.clone(), a.clone()]));
        assert_ne!(of(&[a.clone(), a.clone()]), of(&[b.clone(), b.clone()]));
        assert_ne!(of(&[a.clone(), b.clone()]), of(std::slice::from_ref(&a)));
        assert_ne!(of(&[a.clone(), a.clone(), b.clone()]), of(&[a.clone(), b.clone(), b]));
        let mut admins = Fingerprint::of(&[]);
        admins.add("users", "a@x.example", &json!({"email": "a@x.example"}));
        assert_eq!(admins.rows, 0);
    }
}
