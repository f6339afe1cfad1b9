//! One organisation's database, from within.

use gmah_shared::migrate::{self, MigrateError, MigrationSet, OWN};
use gmah_shared::pg::quote_identifier;
use tokio_postgres::Client;
use uuid::Uuid;

use super::schema::{References, Schema};
use super::{Declared, Findings, upkeep};
use crate::control::servers::Access;
use crate::control::{ControlError, During as _, own_migrations};
use crate::modules;

/// Objects that are named of those that are missing.
const NAMED: usize = 5;

/// Looks at it. That it cannot be entered is a fault as well.
pub(super) async fn examine(
    access: &Access,
    declared: &Declared,
    references: &References,
    findings: &mut Findings,
) {
    if let Err(e) = inside(access, declared, references, findings).await {
        findings.found("database_unreachable", &declared.slug, e.to_string());
    }
}

async fn inside(
    access: &Access,
    declared: &Declared,
    references: &References,
    findings: &mut Findings,
) -> Result<(), ControlError> {
    let slug = &declared.slug;
    let mut db = access.connect(&declared.database).await?;
    identity(&db, declared, findings).await?;
    let files = own_migrations::files(&declared.own);
    let own = MigrationSet { name: OWN, files: &files };
    let mut sets = modules::migrations(&declared.modules);
    if !files.is_empty() {
        sets.push(&own);
    }
    match migrate::pending(&db, &sets).await {
        Ok(pending) if pending.is_empty() => {}
        Ok(pending) => {
            let first = pending.first().map(|f| format!("{}/{:04}", f.set, f.version)).unwrap_or_default();
            let what = format!("{} migrations are missing, from {first}", pending.len());
            let run = async {
                migrate::run(&mut db, &sets, migrate::Options::default()).await.during(slug).map(drop)
            };
            findings.mend("migrations_missing", slug, what, run).await;
        }
        Err(e @ (MigrateError::Changed { .. } | MigrateError::Ahead { .. })) => {
            findings.found("migrations_other", slug, e.to_string());
        }
        Err(e) => return Err(ControlError::Migrate { what: slug.clone(), cause: e }),
    }
    // A role that is missing is a fault of the server's.
    let open: bool = db
        .query_one(
            "select pg_get_userbyid(nspowner) in ($1, 'pg_database_owner')
                 or has_schema_privilege('gmah_tenant', oid, 'create')
                 or coalesce(has_schema_privilege(to_regrole(quote_ident($1)), oid, 'create'), false)
             from pg_namespace where nspname = 'public'",
            &[&declared.role],
        )
        .await
        .during(slug)?
        .get(0);
    let role = quote_identifier(&declared.role);
    if open {
        let mend = async {
            db.batch_execute(&format!(
                "do $$ begin execute format('alter schema public owner to %I', current_user); end $$;
                 revoke all on schema public from public; revoke create on schema public from gmah_tenant, {role}"
            ))
            .await
            .during("closing the schema")
        };
        findings.mend("schema_open", slug, "its own role may make and drop tables", mend).await;
    }
    upkeep::examine(&db, slug, findings).await?;
    let Some(reference) = references.of(&declared.modules) else { return Ok(()) };
    let owned = db
        .query(
            "select oid::regclass::text from pg_class where relnamespace = 'public'::regnamespace
                 and relkind in ('r', 'p', 'S', 'v', 'm') and pg_get_userbyid(relowner) = $1
                 -- A table takes its own sequences along.
                 and not (relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass
                                                    and d.objid = pg_class.oid and d.deptype in ('a', 'i')))
             order by 1 limit 1000",
            &[&declared.role],
        )
        .await
        .during(slug)?;
    for table in owned.iter().map(|r| r.get::<_, &str>(0)) {
        let mend = async {
            // Whatever it is: ALTER TABLE takes them all (PostgreSQL, reference page of ALTER TABLE).
            db.batch_execute(&format!("alter table {table} owner to current_user"))
                .await
                .during("taking the table over")
        };
        findings.mend("table_owner", slug, format!("{table} belongs to its role"), mend).await;
    }
    let found = Schema::of(&db, &declared.role).await?;
    let missing = reference.missing_in(&found);
    if !missing.is_empty() {
        let named: Vec<_> = missing.iter().take(NAMED).copied().collect();
        let more = missing.len() - named.len();
        let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
        findings.found("schema_drift", slug, format!("missing: {}{rest}", named.join("; ")));
    }
    for (table, may) in reference.other_rights(&found) {
        let quoted = quote_identifier(table);
        let grant = match may {
            "" => String::new(),
            may => format!("grant {may} on {quoted} to gmah_tenant;"),
        };
        let mend = async {
            db.batch_execute(&format!("revoke all on {quoted} from gmah_tenant, {role}, public; {grant}"))
                .await
                .during("setting rights")
        };
        findings
            .mend("rights", slug, format!("its role may do other things with {table} than {may:?}"), mend)
            .await;
    }
    Ok(())
}

/// The proof of identity. A row that names another organisation is nobody's to repair.
async fn identity(db: &Client, declared: &Declared, findings: &mut Findings) -> Result<(), ControlError> {
    let slug = &declared.slug;
    let exists: bool = db
        .query_one("select to_regclass('public.gmah_identity') is not null", &[])
        .await
        .during(slug)?
        .get(0);
    if !exists {
        findings.found("identity_missing", slug, "its database has no identity table");
        return Ok(());
    }
    let row = db
        .query_opt("select organization_id, placement, tombstoned_at is not null from gmah_identity", &[])
        .await
        .during(slug)?;
    let (id, placement) = (declared.id.as_uuid(), declared.placement);
    let what = match &row {
        None => "its database has lost its identity row".to_owned(),
        Some(row) if row.get::<_, Uuid>(0) != id => {
            let other: Uuid = row.get(0);
            findings.found("identity_foreign", slug, format!("its database says that it is {other}'s"));
            return Ok(());
        }
        Some(row) if row.get::<_, i32>(1) != placement => {
            let other: i32 = row.get(1);
            findings.found(
                "identity_placement",
                slug,
                format!("its database is placement {other}, and not {placement}"),
            );
            return Ok(());
        }
        Some(row) if row.get::<_, bool>(2) => "its database is marked as left".to_owned(),
        Some(_) => return Ok(()),
    };
    // The master names this database, and it belongs to the organisation's role.
    let mend = async {
        db.execute(
            "insert into gmah_identity (organization_id, placement) values ($1, $2)
             on conflict ((true)) do update set tombstoned_at = null",
            &[&id, &placement],
        )
        .await
        .during("writing the identity row")
        .map(drop)
    };
    findings.mend("identity", slug, what, mend).await;
    Ok(())
}
