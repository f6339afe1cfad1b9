//! In which order tables are filled: what others refer to comes first.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Transaction;

use crate::control::{ControlError, During as _};

/// Those tables, each after all that it refers to.
pub(super) async fn of(tx: &Transaction<'_>, tables: &[String]) -> Result<Vec<String>, ControlError> {
    let rows = tx
        .query(
            "select c.relname, f.relname from pg_constraint k
             join pg_class c on c.oid = k.conrelid join pg_class f on f.oid = k.confrelid
             where k.contype = 'f' and k.connamespace = 'public'::regnamespace and c.oid <> f.oid",
            &[],
        )
        .await
        .during("reading what refers to what")?;
    let mut needs: BTreeMap<String, BTreeSet<String>> =
        tables.iter().map(|t| (t.clone(), BTreeSet::new())).collect();
    for row in &rows {
        let (from, to): (String, String) = (row.get(0), row.get(1));
        if tables.contains(&to)
            && let Some(needed) = needs.get_mut(&from)
        {
            needed.insert(to);
        }
    }
    sorted(needs).ok_or_else(|| ControlError::Foreign("tables refer to each other in a circle".into()))
}

fn sorted(mut needs: BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut order = Vec::new();
    while !needs.is_empty() {
        let next = needs.iter().find(|(_, needed)| needed.is_empty())?.0.clone();
        needs.remove(&next);
        for needed in needs.values_mut() {
            needed.remove(&next);
        }
        order.push(next);
    }
    Some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_comes_first() {
        let needs = |all: &[(&str, &[&str])]| {
            all.iter().map(|(t, n)| ((*t).to_owned(), n.iter().map(|n| (*n).to_owned()).collect())).collect()
        };
        let order = sorted(needs(&[("a", &["c"]), ("b", &[]), ("c", &["b"])]));
        assert_eq!(order, Some(vec!["b".into(), "c".into(), "a".into()]));
        assert_eq!(sorted(needs(&[("a", &["b"]), ("b", &["a"])])), None);
    }
}
