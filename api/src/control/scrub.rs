//! Taking what is personal out of a copy: for trying things out on what a real organisation looks like.
//!
//! Ids, dates, amounts, states and references stay: that is what makes a copy worth trying things on. Names, addresses, notes,
//! and whatever was sealed go; nobody's password works.

use std::collections::BTreeSet;

use gmah_shared::migrate::OWN;
use gmah_shared::pg::quote_identifier;
use tokio_postgres::{Client, Transaction};

use super::{ControlError, During as _};

/// What is done to a table, where it is there.
const SCRUB: &[(&str, &str)] = &[
    ("users", "update users set email = 'user-' || right(id::text, 12) || '@example.invalid', name = 'User ' || right(id::text, 4), password_hash = null"),
    ("families", "update families set name = 'Family ' || right(id::text, 4)"),
    (
        "members",
        "update members set first_name = 'Member', last_name = right(id::text, 12),
             email = case when email is not null then 'member-' || right(id::text, 12) || '@example.invalid' end,
             phone = case when phone is not null then '+00 000 000' end",
    ),
    ("loans", "update loans set purpose = case when purpose is not null then 'purpose' end"),
    ("payments", "update payments set note = case when note is not null then 'note' end"),
    (
        "patients",
        "update patients set first_name = 'Patient', last_name = right(id::text, 12),
             birth_date = date_trunc('year', birth_date), phone = case when phone is not null then '+00 000 000' end,
             national_id = null, national_id_index = null, address = null, notes = null",
    ),
    ("hospitalizations", "update hospitalizations set reason = null"),
    ("invoices", "update invoices set description = case when description is not null then 'description' end"),
    ("invoice_payments", "update invoice_payments set note = case when note is not null then 'note' end"),
    // With their names, addresses and contents.
    ("files", "delete from files"),
    ("audit_log", "delete from audit_log"),
    ("recovery_codes", "delete from recovery_codes"),
    ("user_totp", "delete from user_totp"),
];

/// What the modules' migrations make: triggers, columns, tables, functions, schemas. What there is beside them one organisation has of its own, and
/// nobody here can say what is personal in it.
pub(super) async fn known(db: Client) -> Result<BTreeSet<Made>, ControlError> {
    let rows = db.query(MADE, &[]).await.during("reading the schema")?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
}

/// In the order in which they are dropped: what it is, of which table, its name.
pub(super) type Made = (i32, String, String);

const MADE: &str = "
    select 0, c.relname::text, t.tgname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'public'::regnamespace and not t.tgisinternal
    union all
    select 1, c.relname::text, a.attname::text from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
    union all
    select 2, c.relname::text, '' from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
    union all
    select 3, p.oid::regprocedure::text, '' from pg_proc p
        where p.pronamespace = 'public'::regnamespace
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
    union all
    select 4, n.nspname::text, '' from pg_namespace n
        where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'public')";

async fn drop_what_is_its_own(tx: &Transaction<'_>, known: &BTreeSet<Made>) -> Result<(), ControlError> {
    let what = "taking out what is one organisation's own";
    let rows = tx.query(MADE, &[]).await.during(what)?;
    let found: BTreeSet<Made> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    let own_table = |table: &str| !known.contains(&(2, table.to_owned(), String::new()));
    for (kind, table, name) in found.difference(known) {
        let (quoted, name) = (quote_identifier(table), quote_identifier(name));
        let statement = match kind {
            // They go with their table.
            0 | 1 if own_table(table) => continue,
            0 => format!("drop trigger {name} on {quoted}"),
            1 => format!("alter table {quoted} drop column {name} cascade"),
            3 => format!("drop routine if exists {table} cascade"),
            4 => format!("drop schema if exists {quoted} cascade"),
            // Gone with another one, perhaps.
            _ => format!(
                "do $$ declare kind text; begin
                     select case relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
                         else 'table' end into kind from pg_class where oid = to_regclass(format('public.%I', {0}));
                     if kind is not null then execute format('drop %s public.%I cascade', kind, {0}); end if;
                 end $$",
                gmah_shared::pg::quote_literal(table)
            ),
        };
        tx.batch_execute(&statement).await.during(what)?;
    }
    tx.execute("delete from schema_migrations where set_name = $1", &[&OWN]).await.during(what)?;
    Ok(())
}

/// Takes what is personal out of a database that nobody uses yet; then one administrator can log in.
pub(super) async fn all(
    db: &mut Client,
    known: &BTreeSet<Made>,
    email: &str,
    hash: &str,
) -> Result<(), ControlError> {
    let what = "taking out what is personal";
    let tx = db.transaction().await.during(what)?;
    drop_what_is_its_own(&tx, known).await?;
    for (table, statement) in SCRUB {
        let there = tx.query_one("select to_regclass($1) is not null", &[table]).await.during(what)?;
        if !there.get::<_, bool>(0) {
            continue;
        }
        // What is never changed where people work is changed here.
        tx.batch_execute(&format!(
            "alter table {table} disable trigger user; {statement}; set constraints all immediate;
             alter table {table} enable trigger user"
        ))
        .await
        .during(what)?;
    }
    tx.execute(
        "insert into users (id, email, name, role, password_hash)
         values (gen_random_uuid(), $1, 'Administrator', 'administrator', $2)
         on conflict (email) do update set password_hash = excluded.password_hash",
        &[&email, &hash],
    )
    .await
    .during(what)?;
    tx.commit().await.during(what)
}
