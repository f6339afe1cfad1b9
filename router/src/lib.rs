//! The edge: from a socket to a backend that knows the tenant.
//!
//! # Life of a request
//!
//! 1. [`listener`]: a socket is accepted within the caps, its ClientHello read within the deadline.
//! 2. [`certs`]: the certificate for its SNI, from files or from the master, or the alert `unrecognized_name`.
//!    [`acme`] sees to it in the background that there is one.
//! 3. [`connection`]: HTTP/1.1 heads are read whole, within deadlines and bounds, and checked by [`head`] before the
//!    framework sees them; HTTP/2 streams are accepted one by one.
//! 4. [`authority`]: `Host`, `:authority` and the certificate become one
//!    [`Hostname`](gmah_shared::hostname::Hostname).
//! 5. [`resolve`]: the host becomes a tenant through the catalog cache.
//! 6. [`policy`]: status, maintenance and size; [`limits`]: how often and how many at once.
//! 7. [`headers`]: what the client sent under our names goes, our token and forwarding headers are set last.
//! 8. [`upstream`]: a backend is picked, with deadlines, and tried again where nothing can run twice.
//!
//! [`access`] writes down what became of it. [`proxy`] is the framework's trait, each phase a call to one of the above, put together in [`edge`]; [`ctx`] is what is known of a request so
//! far; [`reject`] is the table of everything that the edge answers by itself, [`page`] how that looks in a browser.

pub mod access;
pub mod acme;
pub mod authority;
pub mod certs;
pub mod config;
pub mod connection;
pub mod ctx;
pub mod edge;
pub mod head;
pub mod headers;
pub mod limits;
pub mod listener;
pub mod live;
pub mod metrics;
pub mod page;
pub mod policy;
pub mod proxy;
pub mod reject;
pub mod resolve;
pub mod server;
pub mod trace;
pub mod upstream;
pub mod usage;

mod admin;
