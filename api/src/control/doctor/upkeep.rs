//! What a database would be the better for. Advice, and no fault: it is served all the same.

use gmah_shared::pg::quote_identifier;
use tokio_postgres::Client;

use super::{Findings, NOTHING};
use crate::control::{ControlError, During as _};

/// Rows that are gone and still take room, before it is worth a word: so many, and a fifth of those that are there.
const DEAD: i64 = 10_000;
/// Rows of a table in which a look-up without an index is felt.
const LARGE: f32 = 10_000.0;

/// Looks at tables and indexes, as the server's statistics have them.
pub(super) async fn examine(db: &Client, slug: &str, findings: &mut Findings) -> Result<(), ControlError> {
    let what = "reading the statistics of tables";
    for row in db.query(DEAD_ROWS, &[&DEAD]).await.during(what)? {
        let (table, dead, live): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let vacuum = async {
            let statement = format!("vacuum (analyze) public.{}", quote_identifier(&table));
            db.batch_execute(&statement).await.during("vacuum")
        };
        let said = format!("{table} has {dead} dead rows beside {live}: autovacuum does not keep up with it");
        findings.advise("vacuum_due", slug, said, Some(vacuum)).await;
    }
    for row in db.query(INVALID, &[]).await.during(what)? {
        let (index, table): (String, String) = (row.get(0), row.get(1));
        let said = format!(
            "{index} of {table} was not finished: it is kept up and never used (reindex it, or drop it)"
        );
        findings.advise("index_invalid", slug, said, NOTHING).await;
    }
    for row in db.query(UNINDEXED, &[&LARGE]).await.during(what)? {
        let (table, columns, referred): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let said = format!(
            "{table} ({columns}) refers to {referred} without an index: each change there reads all of it"
        );
        findings.advise("index_missing", slug, said, NOTHING).await;
    }
    Ok(())
}

const DEAD_ROWS: &str = "select relname::text, n_dead_tup, n_live_tup from pg_stat_user_tables
    where schemaname = 'public' and n_dead_tup > $1 and n_dead_tup > n_live_tup / 5 order by n_dead_tup desc limit 100";

const INVALID: &str = "select i.relname::text, t.relname::text from pg_index x
    join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
    where not x.indisvalid and i.relnamespace = 'public'::regnamespace order by 1 limit 100";

/// Foreign keys whose columns lead no index.
const UNINDEXED: &str = "select t.relname::text,
        (select string_agg(a.attname, ', ' order by k.n) from unnest(c.conkey) with ordinality as k (attnum, n)
         join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.attnum),
        f.relname::text
    from pg_constraint c join pg_class t on t.oid = c.conrelid join pg_class f on f.oid = c.confrelid
    where c.contype = 'f' and c.connamespace = 'public'::regnamespace and t.reltuples > $1
        and not exists (select from pg_index x where x.indrelid = c.conrelid and x.indisvalid
                        and (x.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey)
    order by 1, 2 limit 100";
