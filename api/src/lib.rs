//! The tenant API and the control plane.
//!
//! # Life of a request
//!
//! 1. [`token`]: exactly one `X-Tenant-Token`, verified, or 401.
//! 2. [`context`]: the token's organisation from the catalog, its generation and status; a [`context::TenantContext`]
//!    or a refusal. No handler runs without it.
//! 3. [`pool`]: the organisation's own pool, within the budget of its PostgreSQL server, every new connection proved
//!    to be the right database.
//! 4. [`db`]: a [`db::TenantDb`], the only door to SQL.
//! 5. [`repo`]: typed functions over the statements.
//! 6. [`handlers`]: request type, a few calls to `repo`, response type. [`routes`] lists them all.
//!
//! [`auth`] says who the user is, [`modules`] what an organisation has switched on, [`error`] what a client may read.
//! [`platform`] is what stands on the platform's own host, beside all that. [`control`] is the control plane, used by the
//! command line.

pub mod auth;
pub mod cache;
pub mod chores;
pub mod collector;
pub mod config;
pub mod context;
pub mod control;
pub mod db;
pub mod error;
pub mod files;
pub mod handlers;
pub mod json;
pub mod language;
pub mod mail;
pub mod metrics;
pub mod modules;
pub mod openapi;
pub mod platform;
pub mod pool;
pub mod repo;
pub mod routes;
pub mod server;
pub mod settings;
pub mod token;
pub mod trace;

mod admin;
