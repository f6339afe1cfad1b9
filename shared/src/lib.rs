//! What the router and the api agree on.
//!
//! | module | owns |
//! |---|---|
//! | [`hostname`] | the one normaliser of host names |
//! | [`tenant`] | ids, slugs, status, generation |
//! | [`token`] | the signed header between router and backends |
//! | [`catalog`] | what a tenant is, read from the master database and cached |
//! | [`dns`] | bounded questions to the DNS |
//! | [`domain`] | whether a customer's name is theirs and leads here |
//! | [`config`] | strict TOML, secrets, durations |
//! | [`migrate`] | plain SQL migrations, for the master and for tenants |
//! | [`pg`] | connections to PostgreSQL |
//! | [`secret`] | encryption of what the master must keep but never show |
//! | [`redis`] | a connection that both roles can do without |
//! | [`tasks`] | named background tasks and their end |
//! | [`telemetry`] | log setup, metric names |
//!
//! A thing enters this crate only when both roles need it, or when the command line needs it together with one of
//! them. No pingora and no axum here: the dependency policy refuses both.
#![warn(missing_docs)]

pub mod catalog;
pub mod config;
pub mod dns;
pub mod domain;
pub mod hostname;
pub mod https;
pub mod migrate;
pub mod pg;
pub mod probe;
pub mod redis;
pub mod secret;
pub mod tasks;
pub mod telemetry;
pub mod tenant;
pub mod token;
