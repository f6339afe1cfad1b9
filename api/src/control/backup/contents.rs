//! What is in a database: for each table, how many rows, and a sum over all of them that does not ask in which order.

use std::collections::BTreeMap;

use gmah_shared::pg::quote_identifier;
use serde::{Deserialize, Serialize};
use tokio_postgres::GenericClient;

use crate::control::{ControlError, During as _};

/// Of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Rows.
    pub rows: i64,
    /// Sum of the first sixty bits of each row's MD5, in decimal digits.
    pub checksum: String,
}

/// By table, with its schema where that is not `public`.
pub type Contents = BTreeMap<String, Content>;

/// Looks through a database, as its transaction sees it.
pub(crate) async fn of(tx: &impl GenericClient) -> Result<Contents, ControlError> {
    let what = "counting what is in the database";
    // How a row reads must not depend on who reads it.
    tx.batch_execute(
        "set local timezone = 'UTC'; set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres';
         set local bytea_output = 'hex'; set local extra_float_digits = 1; set local statement_timeout = '1h'",
    )
    .await
    .during(what)?;
    let tables = tx.query(TABLES, &[]).await.during(what)?;
    let mut contents = Contents::new();
    for table in &tables {
        let (schema, name): (String, String) = (table.get(0), table.get(1));
        let sql = format!(
            "select count(*), coalesce(sum(('x' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0)::text
             from only {}.{} t",
            quote_identifier(&schema),
            quote_identifier(&name)
        );
        let row = tx.query_one(&sql, &[]).await.during(what)?;
        let key = if schema == "public" { name } else { format!("{schema}.{name}") };
        contents.insert(key, Content { rows: row.get(0), checksum: row.get(1) });
    }
    Ok(contents)
}

/// What one has and the other has not, in words.
pub(crate) fn difference(expected: &Contents, found: &Contents) -> Option<String> {
    let mut wrong = Vec::new();
    for (table, content) in expected {
        match found.get(table) {
            None => wrong.push(format!("{table} is missing")),
            Some(other) if other.rows != content.rows => {
                wrong.push(format!("{table} has {} rows and not {}", other.rows, content.rows));
            }
            Some(other) if other != content => wrong.push(format!("{table} has other rows")),
            Some(_) => {}
        }
    }
    wrong.extend(found.keys().filter(|t| !expected.contains_key(*t)).map(|t| format!("{t} is too much")));
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

const TABLES: &str =
    "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                        and d.deptype = 'e')
    order by 1, 2 limit 100000";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let one = |rows, checksum: &str| Content { rows, checksum: checksum.into() };
        let made = |all: &[(&str, Content)]| all.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let expected: Contents = made(&[("a", one(1, "1")), ("b", one(2, "2")), ("c", one(3, "3"))]);
        assert_eq!(difference(&expected, &expected), None);
        let found = made(&[("a", one(1, "9")), ("b", one(1, "2")), ("d", one(0, "0"))]);
        let said = difference(&expected, &found).expect("different");
        assert_eq!(said, "a has other rows; b has 1 rows and not 2; c is missing; d is too much");
    }
}
