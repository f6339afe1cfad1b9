//! Typed functions over the statements in `repo/sql/`. They know SQL and rows, and nothing of HTTP.
//!
//! A test prepares every statement of [`STATEMENTS`] against a migrated database.

pub mod idempotency;
pub mod members;
pub mod sessions;
pub mod users;

/// Every statement, by the file that holds it.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("users/by_email", users::BY_EMAIL),
    ("sessions/insert", sessions::INSERT),
    ("sessions/by_access_hash", sessions::BY_ACCESS_HASH),
    ("sessions/rotate", sessions::ROTATE),
    ("sessions/delete", sessions::DELETE),
    ("sessions/delete_expired", sessions::DELETE_EXPIRED),
    ("members/list", members::LIST),
    ("members/get", members::GET),
    ("members/insert", members::INSERT),
    ("members/count", members::COUNT),
    ("members/lock", members::LOCK),
    ("idempotency/insert", idempotency::INSERT),
    ("idempotency/get", idempotency::GET),
    ("idempotency/finish", idempotency::FINISH),
    ("idempotency/delete_expired", idempotency::DELETE_EXPIRED),
];
