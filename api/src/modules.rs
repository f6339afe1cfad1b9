//! What a module is, and the one place that lists them.
//!
//! `core` is everybody's; the others are on or off per organisation. A module brings its tables
//! (`api/migrations/<key>/`) and its routes ([`crate::routes`]); a route of a module that is off answers 404
//! `module_disabled`.

use std::collections::HashMap;

use gmah_shared::migrate::{self, Migration, MigrationSet};

/// One module.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// Key in the catalog, in the command line and in URLs of the documentation.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// Modules that it needs.
    pub requires: &'static [&'static str],
    /// Numbers of a plan that it counts against.
    pub limits: &'static [&'static str],
    /// What a role may be allowed in it.
    pub permissions: &'static [&'static str],
    /// Its tables.
    pub migrations: MigrationSet<'static>,
    /// The earliest version of its tables that this program can work with. A change that is made in two steps (first what is
    /// new, later away with what is old) leaves it behind `migrations`, so that a new program serves organisations before they
    /// are migrated.
    pub oldest: i32,
    /// Columns that are sealed with the organisation's key, for when that changes.
    pub sealed: &'static [Sealed],
}

/// A column of sealed values.
#[derive(Debug, Clone, Copy)]
pub struct Sealed {
    /// Table.
    pub table: &'static str,
    /// Its primary key, a UUID.
    pub key: &'static str,
    /// Column.
    pub column: &'static str,
}

/// Free-loan societies.
pub const LOANS: &str = "loans";
/// Hospitals.
pub const PATIENTS: &str = "patients";

/// What every organisation has.
pub const CORE: Module = Module {
    key: "core",
    title: "Users, roles and sessions",
    requires: &[],
    limits: &["users", "storage_bytes"],
    // Not `audit.read`: who may read everything else is watched by it.
    permissions: &[
        "users.read",
        "users.write",
        "roles.write",
        "audit.inspect",
        "keys.write",
        "settings.read",
        "settings.write",
        "files.read",
        "files.write",
    ],
    migrations: MigrationSet {
        name: "core",
        files: &[
            Migration { version: 1, name: "init", sql: include_str!("../migrations/core/0001_init.sql") },
            Migration { version: 2, name: "rights", sql: include_str!("../migrations/core/0002_rights.sql") },
            Migration { version: 3, name: "audit", sql: include_str!("../migrations/core/0003_audit.sql") },
            Migration {
                version: 4,
                name: "accounts",
                sql: include_str!("../migrations/core/0004_accounts.sql"),
            },
            Migration {
                version: 5,
                name: "settings",
                sql: include_str!("../migrations/core/0005_settings.sql"),
            },
            Migration { version: 6, name: "files", sql: include_str!("../migrations/core/0006_files.sql") },
            Migration {
                version: 7,
                name: "figures",
                sql: include_str!("../migrations/core/0007_figures.sql"),
            },
            Migration {
                version: 8,
                name: "impersonation",
                sql: include_str!("../migrations/core/0008_impersonation.sql"),
            },
        ],
    },
    oldest: 8,
    sealed: &[
        Sealed { table: "idempotency_keys", key: "place", column: "answer" },
        Sealed { table: "outbox", key: "id", column: "body" },
        Sealed { table: "user_totp", key: "user_id", column: "secret" },
    ],
};

/// What an organisation may have, in order of their keys.
pub const OPTIONAL: &[Module] = &[
    Module {
        key: LOANS,
        title: "Members, loans and payments of a free-loan society",
        requires: &[],
        limits: &["members"],
        permissions: &[
            "members.read",
            "members.write",
            "members.export",
            "loans.read",
            "loans.write",
            "loans.approve",
            "payments.read",
            "payments.write",
        ],
        migrations: MigrationSet {
            name: LOANS,
            files: &[
                Migration {
                    version: 1,
                    name: "members",
                    sql: include_str!("../migrations/loans/0001_members.sql"),
                },
                Migration {
                    version: 2,
                    name: "loans",
                    sql: include_str!("../migrations/loans/0002_loans.sql"),
                },
                Migration {
                    version: 3,
                    name: "families",
                    sql: include_str!("../migrations/loans/0003_families.sql"),
                },
            ],
        },
        oldest: 3,
        sealed: &[],
    },
    Module {
        key: PATIENTS,
        title: "Patients, hospitalizations and invoices of a hospital",
        requires: &[],
        limits: &[],
        permissions: &[
            "patients.read",
            "patients.write",
            "patients.export",
            "hospitalizations.read",
            "hospitalizations.write",
            "invoices.read",
            "invoices.write",
            "payments.read",
            "payments.write",
        ],
        migrations: MigrationSet {
            name: PATIENTS,
            files: &[
                Migration {
                    version: 1,
                    name: "patients",
                    sql: include_str!("../migrations/patients/0001_patients.sql"),
                },
                Migration {
                    version: 2,
                    name: "hospital",
                    sql: include_str!("../migrations/patients/0002_hospital.sql"),
                },
            ],
        },
        oldest: 2,
        sealed: &[
            Sealed { table: "patients", key: "id", column: "national_id" },
            Sealed { table: "patients", key: "id", column: "address" },
            Sealed { table: "patients", key: "id", column: "notes" },
            Sealed { table: "hospitalizations", key: "id", column: "reason" },
        ],
    },
];

/// Every permission of every module.
pub fn permissions() -> impl Iterator<Item = &'static str> {
    std::iter::once(&CORE).chain(OPTIONAL).flat_map(|m| m.permissions).copied()
}

/// Tells the schema of this program from any other's.
pub fn fingerprint() -> String {
    let all: Vec<_> = std::iter::once(&CORE).chain(OPTIONAL).map(|m| &m.migrations).collect();
    migrate::fingerprint(&all)
}

/// Modules that those need and that are not among them.
pub fn missing<'a>(all: &'a [Module], keys: &[&str]) -> Vec<(&'a str, &'static str)> {
    let wanted = all.iter().filter(|m| keys.contains(&m.key));
    wanted
        .flat_map(|m| m.requires.iter().map(|needed| (m.key, *needed)))
        .filter(|(_, needed)| !keys.contains(needed))
        .collect()
}

/// The module of a key.
pub fn find(key: &str) -> Option<&'static Module> {
    OPTIONAL.iter().find(|m| m.key == key)
}

/// The migrations of an organisation with those modules, `core` first. Keys that this binary does not know are left
/// out: their tables stay as they are.
pub fn migrations(keys: &[String]) -> Vec<&'static MigrationSet<'static>> {
    let optional = OPTIONAL.iter().filter(|m| keys.iter().any(|k| k == m.key));
    std::iter::once(&CORE.migrations).chain(optional.map(|m| &m.migrations)).collect()
}

/// Whether this program can work with a database that has come so far, by set.
///
/// # Errors
/// What is too old, or too new.
pub fn serves(keys: &[String], found: &HashMap<String, i32>) -> Result<(), String> {
    let optional = OPTIONAL.iter().filter(|m| keys.iter().any(|k| k == m.key));
    for module in std::iter::once(&CORE).chain(optional) {
        let (oldest, latest) = (module.oldest, module.migrations.latest());
        let version = found.get(module.key).copied().unwrap_or_default();
        if !(oldest..=latest).contains(&version) {
            return Err(format!(
                "{} is at {version}, and this program serves {oldest} to {latest}",
                module.key
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered_without_gaps() {
        for module in std::iter::once(&CORE).chain(OPTIONAL) {
            assert_eq!(module.key, module.migrations.name);
            for (n, file) in module.migrations.files.iter().enumerate() {
                assert_eq!(usize::try_from(file.version).expect("positive"), n + 1, "{}", module.key);
            }
        }
        assert!(OPTIONAL.is_sorted_by_key(|m| m.key));
    }

    #[test]
    fn what_is_out_of_range_is_not_served() {
        let at =
            |core: i32, loans: i32| HashMap::from([("core".to_owned(), core), (LOANS.to_owned(), loans)]);
        let (core, loans) = (CORE.migrations.latest(), OPTIONAL[0].migrations.latest());
        let keys = [LOANS.to_owned(), "of a later program".to_owned()];
        assert_eq!(serves(&keys, &at(core, loans)), Ok(()));
        assert!(serves(&keys, &at(core + 1, loans)).is_err_and(|why| why.starts_with("core is at")));
        assert!(
            serves(&keys, &at(core, OPTIONAL[0].oldest - 1)).is_err_and(|why| why.starts_with("loans is at"))
        );
        assert!(serves(&keys, &HashMap::new()).is_err());
        // What is switched off is nobody's concern.
        assert_eq!(serves(&[], &at(core, 0)), Ok(()));
        for module in std::iter::once(&CORE).chain(OPTIONAL) {
            assert!((1..=module.migrations.latest()).contains(&module.oldest), "{}", module.key);
        }
    }

    #[test]
    fn what_a_module_needs_is_named() {
        let all = [Module { requires: &[PATIENTS], key: "wards", ..CORE }, Module { key: PATIENTS, ..CORE }];
        assert_eq!(missing(&all, &["wards"]), [("wards", PATIENTS)]);
        assert!(missing(&all, &["wards", PATIENTS]).is_empty());
        assert!(missing(&all, &[PATIENTS]).is_empty());
        // What is needed is there, and nobody needs themselves.
        for module in OPTIONAL {
            assert!(module.requires.iter().all(|r| find(r).is_some() && *r != module.key));
        }
    }

    #[test]
    fn core_comes_first_and_unknown_keys_are_left_out() {
        let names: Vec<_> =
            migrations(&["patients".into(), "nothing".into()]).iter().map(|s| s.name).collect();
        assert_eq!(names, ["core", "patients"]);
    }
}
