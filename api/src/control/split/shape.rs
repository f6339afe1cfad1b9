//! What tables are made of, there and here, and which statement reads an organisation's rows of each.

use std::collections::{BTreeMap, BTreeSet};

use gmah_shared::pg::quote_identifier;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement, Transaction};

use super::plan::Plan;
use crate::control::portable::{OMITTED_COLUMNS, OMITTED_TABLES, sealed_of};
use crate::control::{ControlError, During as _};

/// A column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    name: String,
    /// As PostgreSQL writes it.
    kind: String,
    /// Not null, and nothing stands in for it.
    is_required: bool,
}

/// Columns of each table, and single columns by which tables refer to others.
#[derive(Debug, Default)]
pub(super) struct Shape {
    tables: BTreeMap<String, Vec<Column>>,
    /// Those that are no views.
    base: BTreeSet<String>,
    /// Table, column, table, column.
    references: Vec<(String, String, String, String)>,
}

/// How a table is read.
pub(super) struct Reading {
    pub(super) table: String,
    /// Columns that are carried over, in the order of the table here.
    pub(super) columns: Vec<String>,
    pub(super) statement: Statement,
    /// Counts all rows there are, whosever they are; none where the plan has a statement of its own.
    pub(super) count: Option<String>,
}

impl Shape {
    /// Of what a session sees as `public`.
    pub(super) async fn of(db: &Client) -> Result<Self, ControlError> {
        let what = "reading the tables";
        let mut shape = Self::default();
        for row in db.query(COLUMNS, &[]).await.during(what)? {
            let column = Column { name: row.get(1), kind: row.get(2), is_required: row.get(3) };
            let table: String = row.get(0);
            if row.get(4) {
                shape.base.insert(table.clone());
            }
            shape.tables.entry(table).or_default().push(column);
        }
        let references = db.query(REFERENCES, &[]).await.during(what)?;
        shape.references = references.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect();
        Ok(shape)
    }

    fn kind_of(&self, table: &str, column: &str) -> Option<&str> {
        self.tables.get(table)?.iter().find(|c| c.name == column).map(|c| c.kind.as_str())
    }

    /// A condition that is true for an organisation's rows of a table, which is called `alias`: by its own column, or by
    /// those of the row that it refers to.
    fn whose(&self, table: &str, alias: &str, column: &str, seen: &mut BTreeSet<String>) -> Option<String> {
        if let Some(kind) = self.kind_of(table, column) {
            return Some(format!("{alias}.{} = $1::{kind}", quote_identifier(column)));
        }
        if !seen.insert(table.to_owned()) {
            return None;
        }
        let owner = format!("{alias}_");
        let mut ways = self.references.iter().filter(|r| r.0 == table && r.2 != table).filter_map(
            |(_, from, to, key)| {
                let theirs = self.whose(to, &owner, column, seen)?;
                Some(format!(
                    "exists (select from {} {owner} where {owner}.{} = {alias}.{} and {theirs})",
                    quote_identifier(to),
                    quote_identifier(key),
                    quote_identifier(from)
                ))
            },
        );
        // Of several, one may be whoever wrote it down, and not whose it is.
        let found = (ways.next(), ways.next());
        // Only what is on the way here is no way: another one may come by.
        seen.remove(table);
        match found {
            (Some(way), None) => Some(way),
            _ => None,
        }
    }
}

/// How each table is read. Whatever would stay behind without the plan saying so is refused, all of it at once.
pub(super) async fn readings(
    tx: &Transaction<'_>,
    plan: &Plan,
    source: &Shape,
    target: &Shape,
) -> Result<Vec<Reading>, ControlError> {
    let mut faults = Vec::new();
    let mut readings = Vec::new();
    for name in plan.tables.keys().filter(|t| !target.tables.contains_key(*t) || is_ours(t)) {
        faults.push(format!("tables.{name}: an organisation has no such table, or it is the platform's"));
    }
    for table in source.base.iter().filter(|t| !target.tables.contains_key(*t) && !plan.leaves(t, None)) {
        faults.push(format!("{table}: would stay behind: map it, or leave_out"));
    }
    for (table, columns) in target.tables.iter().filter(|(t, _)| !is_ours(t) && !plan.leaves(t, None)) {
        let (sql, count) = match (plan.tables.get(table), source.tables.contains_key(table)) {
            (Some(sql), _) => (sql.clone(), None),
            (None, false) => continue,
            (None, true) => {
                let rule = plan.tenant_column.as_deref();
                let whose = rule.and_then(|column| source.whose(table, "t", column, &mut BTreeSet::new()));
                let Some(whose) = whose else {
                    faults.push(format!(
                        "{table}: nothing says whose its rows are, or several references do: give tables.{table}.sql, or leave_out"
                    ));
                    continue;
                };
                let from = quote_identifier(table);
                let sql = format!("select t.* from {from} t where {whose}");
                (sql, Some(format!("select count(*) from {from}")))
            }
        };
        match reading(tx, plan, table, columns, &sql).await {
            Ok((columns, statement)) => {
                readings.push(Reading { table: table.clone(), columns, statement, count });
            }
            Err(why) => faults.extend(why),
        }
    }
    if faults.is_empty() { Ok(readings) } else { Err(ControlError::Refused(faults.join("\n"))) }
}

/// The statement whose rows have exactly the types that they have here: what cannot become them is found while reading.
async fn reading(
    tx: &Transaction<'_>,
    plan: &Plan,
    table: &str,
    columns: &[Column],
    sql: &str,
) -> Result<(Vec<String>, Statement), Vec<String>> {
    let failed = |e: tokio_postgres::Error| {
        vec![format!(
            "{table}: {}",
            e.as_db_error().map_or_else(|| e.to_string(), |d| d.message().to_owned())
        )]
    };
    // A statement that fails would end the transaction, and with it everybody's moment.
    tx.batch_execute("savepoint reading").await.map_err(failed)?;
    let first = match tx.prepare_typed(sql, &[Type::TEXT]).await {
        Ok(first) => first,
        Err(e) => {
            tx.batch_execute("rollback to savepoint reading").await.map_err(failed)?;
            return Err(failed(e));
        }
    };
    let given: Vec<&str> = first.columns().iter().map(|c| c.name()).collect();
    let mut faults = Vec::new();
    let is_secret = |name: &str| OMITTED_COLUMNS.iter().any(|(t, c)| *t == table && *c == name);
    for name in &given {
        let is_known = columns.iter().any(|c| c.name == *name) && !is_secret(name);
        let is_whose = plan.tenant_column.as_deref() == Some(*name);
        if !is_known && !is_whose && !plan.leaves(table, Some(name)) {
            faults.push(format!("{table}.{name}: is not there, and would stay behind: rename it in tables.{table}.sql, or leave_out"));
        }
    }
    for column in columns.iter().filter(|c| c.is_required && !given.contains(&c.name.as_str())) {
        faults.push(format!("{table}.{}: every row needs it: give it in tables.{table}.sql", column.name));
    }
    if first.params().len() > 1 {
        faults.push(format!("{table}: the statement asks for more than $1, the key"));
    }
    if !sql.contains("$1") {
        faults.push(format!(
            "{table}: the statement does not ask for $1, the key: everybody would get all rows"
        ));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let sealed: Vec<&str> = sealed_of(table).iter().map(|s| s.column).collect();
    let carried: Vec<&Column> = columns
        .iter()
        .filter(|c| {
            given.contains(&c.name.as_str()) && !is_secret(&c.name) && !plan.leaves(table, Some(&c.name))
        })
        .collect();
    let list: Vec<String> = carried
        .iter()
        .map(|c| {
            let kind = if sealed.contains(&c.name.as_str()) { "text" } else { c.kind.as_str() };
            let name = quote_identifier(&c.name);
            format!("q.{name}::{kind} as {name}")
        })
        .collect();
    for c in carried.iter().filter(|c| !sealed.contains(&c.name.as_str())) {
        let Some(from) = first.columns().iter().find(|g| g.name() == c.name) else { continue };
        let row = tx.query_one(LOSES, &[&from.type_().oid(), &c.kind]).await.map_err(failed)?;
        if row.get(0) {
            let (name, from) = (&c.name, from.type_().name());
            faults.push(format!(
                "{table}.{name}: {from} there, {} here: say in tables.{table}.sql how one becomes the other",
                c.kind
            ));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let whole = format!("select to_jsonb(r) from (select {} from ({sql}) q) r", list.join(", "));
    match tx.prepare_typed(&whole, &[Type::TEXT]).await {
        Ok(statement) => Ok((carried.iter().map(|c| c.name.clone()).collect(), statement)),
        Err(e) => {
            tx.batch_execute("rollback to savepoint reading").await.map_err(failed)?;
            Err(failed(e))
        }
    }
}

/// Tables that no organisation brings along: the platform's, and files, whose bytes are not in a database.
fn is_ours(table: &str) -> bool {
    OMITTED_TABLES.contains(&table) || table == "files"
}

/// Whether a value may become another on its way: unless the types are the same, one is a text, or the server would do it unasked.
const LOSES: &str = "select not (f.oid = t.oid or t.oid = 'text'::regtype or f.typcategory = 'S' or exists (
        select from pg_cast c where c.castsource = f.oid and c.casttarget = t.oid and c.castcontext = 'i'))
    from pg_type f, pg_type t where f.oid = $1 and t.oid = $2::text::regtype";

const COLUMNS: &str = "
    select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
           a.attnotnull and not a.atthasdef and a.attidentity = '', c.relkind in ('r', 'p')
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
    order by c.relname, a.attnum limit 100000";

const REFERENCES: &str = "
    select c.relname::text, a.attname::text, f.relname::text, b.attname::text
    from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_class f on f.oid = k.confrelid
    join pg_attribute a on a.attrelid = c.oid and a.attnum = k.conkey[1]
    join pg_attribute b on b.attrelid = f.oid and b.attnum = k.confkey[1]
    where k.contype = 'f' and cardinality(k.conkey) = 1 and k.connamespace = 'public'::regnamespace
    order by a.attnotnull desc, c.relname, a.attname limit 100000";
