//! Taking what is personal out of a copy: for trying things out on what a real organisation looks like.
//!
//! Ids, dates, amounts, states and references stay: that is what makes a copy worth trying things on. Names, addresses, notes,
//! and whatever was sealed go; nobody's password works.

use tokio_postgres::Client;

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

/// Takes what is personal out of a database that nobody uses yet; then one administrator can log in.
pub(super) async fn all(db: &mut Client, email: &str, hash: &str) -> Result<(), ControlError> {
    let what = "taking out what is personal";
    let tx = db.transaction().await.during(what)?;
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
