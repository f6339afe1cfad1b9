//! Whether a server keeps what it has acknowledged through a crash (PostgreSQL, chapters 20.5 and 28.1). Turning this on
//! again makes nothing whole that was lost meanwhile, so it is for its owner to do.

use tokio_postgres::Client;

use super::Findings;
use crate::control::{ControlError, During as _};

/// Looks at a server's settings, and at those of all its databases and roles; of the master's server, at what counts for
/// the master.
pub(super) async fn examine(
    admin: &Client,
    subject: &str,
    is_master: bool,
    findings: &mut Findings,
) -> Result<(), ControlError> {
    for row in admin.query(SETTINGS, &[&is_master]).await.during("reading the server's settings")? {
        let (setting, whose): (String, String) = (row.get(0), row.get(1));
        let loss = if setting == "synchronous_commit" {
            "what was acknowledged in the moments before a crash is lost"
        } else {
            "a crash of its machine may leave nothing that can be read"
        };
        findings.found("server_not_durable", subject, format!("{setting} is off{whose}: {loss}"));
    }
    Ok(())
}

/// Of the server as a whole, then of single databases and roles; the fewest words first.
const SETTINGS: &str = "
    select name, '' from pg_settings
    where name in ('fsync', 'full_page_writes', 'synchronous_commit') and reset_val = 'off'
    union
    select split_part(c, '=', 1), coalesce(' for database ' || d.datname, '') || coalesce(' for role ' || r.rolname, '')
    from pg_db_role_setting s cross join unnest(s.setconfig) as c
    left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole
    where lower(c) in ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0')
        and (not $1 or (coalesce(d.datname, current_database()) = current_database()
                        and coalesce(r.rolname, current_user) = current_user))
    order by 2, 1 limit 100";
