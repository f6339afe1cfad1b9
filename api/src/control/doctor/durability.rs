//! Whether a server keeps what it has acknowledged through a crash (PostgreSQL, chapters 20.5 and 28.1). Turning this on
//! again makes nothing whole that was lost meanwhile, so it is for its owner to do.

use tokio_postgres::Client;

use super::{Declared, Findings};
use crate::control::{ControlError, During as _};

/// Looks at a server's settings, and at those of the organisations' databases and roles there.
pub(super) async fn examine(
    admin: &Client,
    server: &str,
    here: &[&Declared],
    findings: &mut Findings,
) -> Result<(), ControlError> {
    let databases: Vec<&str> = here.iter().map(|d| d.database.as_str()).collect();
    let roles: Vec<&str> = here.iter().map(|d| d.role.as_str()).collect();
    let off = admin.query(SETTINGS, &[&databases, &roles]).await;
    for row in off.during("reading the server's settings")? {
        note(server, row.get(0), row.get(1), findings).await;
    }
    Ok(())
}

/// Looks at what counts for the master.
pub(super) async fn examine_master(master: &Client, findings: &mut Findings) -> Result<(), ControlError> {
    for row in master.query(MASTERS, &[]).await.during("reading the master's settings")? {
        note("master", row.get(0), "", findings).await;
    }
    Ok(())
}

async fn note(server: &str, setting: &str, whose: &str, findings: &mut Findings) {
    let kind = "server_not_durable";
    let said = |loss: &str| format!("{setting} is off{whose}: {loss}");
    match setting {
        // Some file systems need it not (PostgreSQL, chapter 28.1).
        "full_page_writes" => {
            let loss =
                "unless its file system writes no page by halves, a crash may leave some that cannot be read";
            findings.advise(kind, server, said(loss), super::NOTHING).await;
        }
        "fsync" => {
            findings.found(kind, server, said("a crash of its machine may leave nothing that can be read"))
        }
        _ => {
            findings.found(kind, server, said("what was acknowledged in the moments before a crash is lost"))
        }
    }
}

/// Of the server as a whole, where nothing of this session's own hides it; then of single databases and roles.
const SETTINGS: &str = "
    select name, '' as whose from pg_settings
    where name in ('fsync', 'full_page_writes', 'synchronous_commit') and reset_val = 'off'
        and source not in ('database', 'user', 'database user', 'client', 'session')
    union
    select split_part(c, '=', 1), coalesce(' for database ' || d.datname, '') || coalesce(' for role ' || r.rolname, '')
    from pg_db_role_setting s cross join unnest(s.setconfig) as c
    left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole
    where lower(c) in ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0')
        and (d.datname = any($1) or r.rolname = any($2))
    order by 2, 1 limit 1000";

const MASTERS: &str = "select name from pg_settings
    where name in ('fsync', 'full_page_writes', 'synchronous_commit') and reset_val = 'off' order by 1";
