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

/// Tables that are looked through with one question.
const AT_ONCE: usize = 50;

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
    let tables = tx.query_typed(TABLES, &[]).await.during(what)?;
    let names: Vec<(String, String)> = tables.iter().map(|t| (t.get(0), t.get(1))).collect();
    let mut contents = Contents::new();
    for some in names.chunks(AT_ONCE) {
        let each: Vec<String> = some
            .iter()
            .enumerate()
            .map(|(n, (schema, name))| {
                format!(
                    "select {n}, count(*), coalesce(sum(('x' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0)::text
                     from only {}.{} t",
                    quote_identifier(schema),
                    quote_identifier(name)
                )
            })
            .collect();
        // One question for many: most tables of most organisations are small.
        for row in tx.query_typed(&each.join(" union all "), &[]).await.during(what)? {
            let at = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            let Some((schema, name)) = some.get(at) else { continue };
            let key = if schema == "public" { name.clone() } else { format!("{schema}.{name}") };
            contents.insert(key, Content { rows: row.get(1), checksum: row.get(2) });
        }
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
