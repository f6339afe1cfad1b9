//! Integration tests: a real PostgreSQL, real TLS, both roles, the real binary.
//!
//! `gmah dev` gives each test its own cluster, organisations and roles ([`harness::dev`]); a test that needs other
//! bounds or a recording backend starts its own roles beside it ([`harness::roles`]). Tests carry the ids of the
//! adversarial cases that they hold.

mod harness;

mod access;
mod accounts;
mod admin;
mod audit;
mod backends;
mod backups;
mod base_certificate;
mod bounds;
mod catalog;
mod cli;
mod credentials;
mod deletion;
mod dev;
mod doctor;
mod domains;
mod drain;
mod exec;
mod faults;
mod figures;
mod files;
mod fleet;
mod framing;
mod headers;
mod hospital;
mod hosts;
mod isolation;
mod kills;
mod limits;
mod loans;
mod mail;
mod manners;
mod masters;
mod members;
mod metrics;
mod modules;
mod nodes;
mod operations;
mod outages;
mod own_migrations;
mod platform;
mod pools;
mod portable;
mod provision;
mod relocate;
mod replica;
mod rotation;
mod signup;
mod society;
mod split;
mod sql;
mod staple;
mod tls;
mod tokens;
mod traces;
mod transport;
mod upgrade;
mod users;
mod websockets;
