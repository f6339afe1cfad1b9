//! Typed functions over the statements in `repo/sql/`. They know SQL and rows, and nothing of HTTP.
//!
//! A test prepares every statement of [`STATEMENTS`] against a migrated database.

pub mod api_keys;
pub mod audit;
pub mod families;
pub mod figures;
pub mod files;
pub mod hospitalizations;
pub mod idempotency;
pub mod invoice_payments;
pub mod invoices;
pub mod links;
pub mod loans;
pub mod members;
pub mod outbox;
pub mod overview;
pub mod patients;
pub mod payments;
pub mod replica;
pub mod roles;
pub mod sessions;
pub mod settings;
pub mod totp;
pub mod users;

mod at;

/// What `LIKE` finds anywhere, in lower case and with nothing of it a wildcard.
pub(crate) fn pattern(search: &str) -> String {
    let plain = search.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    format!("%{plain}%")
}

/// Days in JSON: `YYYY-MM-DD`.
pub(crate) mod date {
    time::serde::format_description!(day, Date, "[year]-[month]-[day]");
    pub(crate) use day::{deserialize, option, serialize};
}

/// What may be the first question of a request: they only read, so that they can be asked twice.
pub(crate) const ASKED_FIRST: &[&str] = &[sessions::BY_ACCESS_HASH, api_keys::BY_HASH];

/// Every statement, by the file that holds it.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("audit/insert", audit::INSERT),
    ("replica/position", replica::POSITION),
    ("replica/has_replayed", replica::HAS_REPLAYED),
    ("audit/list", audit::LIST),
    ("audit/expire", audit::EXPIRE),
    ("outbox/insert", outbox::INSERT),
    ("outbox/take", outbox::TAKE),
    ("outbox/next", outbox::NEXT),
    ("outbox/remove", outbox::REMOVE),
    ("outbox/failed", outbox::FAILED),
    ("outbox/delete_expired", outbox::DELETE_EXPIRED),
    ("links/put", links::PUT),
    ("links/works", links::WORKS),
    ("links/take", links::TAKE),
    ("links/delete_all", links::DELETE_ALL),
    ("links/delete_expired", links::DELETE_EXPIRED),
    ("api_keys/insert", api_keys::INSERT),
    ("api_keys/by_hash", api_keys::BY_HASH),
    ("api_keys/rights", api_keys::RIGHTS),
    ("api_keys/used", api_keys::USED),
    ("api_keys/list", api_keys::LIST),
    ("api_keys/delete", api_keys::DELETE),
    ("api_keys/delete_all", api_keys::DELETE_ALL),
    ("totp/get", totp::GET),
    ("totp/begin", totp::BEGIN),
    ("totp/use_step", totp::USE_STEP),
    ("totp/confirm", totp::CONFIRM),
    ("totp/put_codes", totp::PUT_CODES),
    ("totp/use_code", totp::USE_CODE),
    ("totp/delete", totp::DELETE),
    ("users/by_email", users::BY_EMAIL),
    ("users/get", users::GET),
    ("users/list", users::LIST),
    ("users/insert", users::INSERT),
    ("users/update", users::UPDATE),
    ("users/administrators", users::ADMINISTRATORS),
    ("users/set_password", users::SET_PASSWORD),
    ("users/lock", users::LOCK),
    ("users/count", users::COUNT),
    ("roles/list", roles::LIST),
    ("roles/get", roles::GET),
    ("roles/insert", roles::INSERT),
    ("roles/update", roles::UPDATE),
    ("roles/is_used", roles::IS_USED),
    ("roles/delete", roles::DELETE),
    ("sessions/insert", sessions::INSERT),
    ("sessions/impersonate", sessions::IMPERSONATE),
    ("sessions/by_access_hash", sessions::BY_ACCESS_HASH),
    ("sessions/rotate", sessions::ROTATE),
    ("sessions/end_reused", sessions::END_REUSED),
    ("sessions/rights", sessions::RIGHTS),
    ("sessions/list", sessions::LIST),
    ("sessions/delete", sessions::DELETE),
    ("sessions/delete_all", sessions::DELETE_ALL),
    ("sessions/delete_expired", sessions::DELETE_EXPIRED),
    ("members/list", members::LIST),
    ("members/find", members::FIND),
    ("members/get", members::GET),
    ("members/get_locked", members::GET_LOCKED),
    ("members/insert_many", members::INSERT_MANY),
    ("members/update", members::UPDATE),
    ("members/insert", members::INSERT),
    ("members/count", members::COUNT),
    ("members/lock", members::LOCK),
    ("files/list", files::LIST),
    ("files/get", files::GET),
    ("files/reserve", files::RESERVE),
    ("files/stored", files::STORED),
    ("files/delete", files::DELETE),
    ("files/left_over", files::LEFT_OVER),
    ("files/give_up", files::GIVE_UP),
    ("files/forget", files::FORGET),
    ("files/used", files::USED),
    ("files/lock", files::LOCK),
    ("figures/core", figures::CORE),
    ("figures/loans", figures::LOANS),
    ("figures/patients", figures::PATIENTS),
    ("figures/schema", figures::SCHEMA),
    ("overview/loans_counts", overview::LOANS_COUNTS),
    ("overview/patients_counts", overview::PATIENTS_COUNTS),
    ("overview/loans", overview::LOANS_OUTSTANDING),
    ("overview/patients", overview::PATIENTS_OUTSTANDING),
    ("families/list", families::LIST),
    ("families/get", families::GET),
    ("families/get_locked", families::GET_LOCKED),
    ("families/insert", families::INSERT),
    ("families/rename", families::RENAME),
    ("families/is_used", families::IS_USED),
    ("families/delete", families::DELETE),
    ("settings/get", settings::GET),
    ("settings/lock", settings::LOCK),
    ("settings/put", settings::PUT),
    ("loans/list", loans::LIST),
    ("loans/get", loans::GET),
    ("loans/insert", loans::INSERT),
    ("loans/insert_guarantors", loans::INSERT_GUARANTORS),
    ("loans/lock", loans::LOCK),
    ("loans/set_status", loans::SET_STATUS),
    ("payments/list", payments::LIST),
    ("payments/get", payments::GET),
    ("payments/insert", payments::INSERT),
    ("loans/count_open", loans::COUNT_OPEN),
    ("loans/lock_member", loans::LOCK_MEMBER),
    ("hospitalizations/list", hospitalizations::LIST),
    ("hospitalizations/get", hospitalizations::GET),
    ("hospitalizations/get_locked", hospitalizations::GET_LOCKED),
    ("hospitalizations/insert", hospitalizations::INSERT),
    ("hospitalizations/set_ward", hospitalizations::SET_WARD),
    ("hospitalizations/discharge", hospitalizations::DISCHARGE),
    ("invoices/list", invoices::LIST),
    ("invoices/list_open", invoices::LIST_OPEN),
    ("invoices/set_settled", invoices::SET_SETTLED),
    ("invoices/get", invoices::GET),
    ("invoices/lock", invoices::LOCK),
    ("invoices/insert", invoices::INSERT),
    ("invoices/cancel", invoices::CANCEL),
    ("invoice_payments/list", invoice_payments::LIST),
    ("invoice_payments/get", invoice_payments::GET),
    ("invoice_payments/insert", invoice_payments::INSERT),
    ("patients/records", patients::RECORDS),
    ("patients/get_locked", patients::GET_LOCKED),
    ("patients/update", patients::UPDATE),
    ("patients/list", patients::LIST),
    ("patients/get", patients::GET),
    ("patients/insert", patients::INSERT),
    ("idempotency/insert", idempotency::INSERT),
    ("idempotency/get", idempotency::GET),
    ("idempotency/is_known", idempotency::IS_KNOWN),
    ("idempotency/delete_old", idempotency::DELETE_OLD),
    ("hospitalizations/list_current", hospitalizations::LIST_CURRENT),
    ("hospitalizations/lock_patient", hospitalizations::LOCK_PATIENT),
    ("idempotency/finish", idempotency::FINISH),
    ("idempotency/delete_expired", idempotency::DELETE_EXPIRED),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_first_only_reads() {
        for sql in ASKED_FIRST {
            let code: String = sql.lines().filter(|l| !l.trim_start().starts_with("--")).collect();
            assert!(code.trim_start().starts_with("select"), "{sql}");
            assert!(!code.to_lowercase().contains("for update") && !code.contains(';'), "{sql}");
            assert!(STATEMENTS.iter().any(|(_, known)| known == sql), "{sql}");
        }
    }

    /// Connections go from one request to the next as they are, because nothing here alters a session (PostgreSQL, `DISCARD`).
    #[test]
    fn q01_no_statement_alters_a_session() {
        let modules = std::iter::once(&crate::modules::CORE).chain(crate::modules::OPTIONAL);
        let migrations = modules.flat_map(|m| m.migrations.files).map(|file| (file.name, file.sql));
        for (name, sql) in STATEMENTS {
            let code: String =
                sql.lines().filter(|l| !l.trim_start().starts_with("--")).collect::<Vec<_>>().join(" ");
            let first = code.split_whitespace().next().unwrap_or_default().to_lowercase();
            assert!(
                ["select", "with", "insert", "update", "delete"].contains(&first.as_str()),
                "{name}: {first}"
            );
            assert!(!code.contains(';'), "{name}: one statement");
        }
        // Nor do they call what does, or a function of ours that would.
        let functions = [
            "set_config",
            "nextval",
            "setval",
            "pg_advisory_lock",
            "pg_try_advisory_lock",
            "pg_notify",
            "dblink",
            "setseed",
        ];
        for (name, sql) in STATEMENTS.iter().copied().chain(migrations) {
            for function in functions {
                assert!(!sql.to_lowercase().contains(function), "{name}: {function}");
            }
        }
    }
}
