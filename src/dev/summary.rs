//! What is told when everything answers: the ready file for programs, a page for people.

use std::net::SocketAddr;
use std::path::Path;

use gmah_shared::hostname::Hostname;
use secrecy::ExposeSecret as _;

use super::cluster::{Cluster, SUPERUSER};
use super::files::DataDir;
use super::organisations::Demo;

/// Everything that is told.
pub(super) struct Info<'a> {
    pub(super) https: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) api_admin: SocketAddr,
    pub(super) base: Hostname,
    pub(super) organisations: &'a Demo,
    pub(super) dir: &'a DataDir,
    pub(super) cluster: &'a Cluster,
}

impl Info<'_> {
    /// The ready file.
    pub(super) fn json(&self) -> serde_json::Value {
        let tenants: Vec<_> = self
            .organisations
            .tenants
            .iter()
            .map(|t| {
                serde_json::json!({
                    "slug": t.slug, "host": t.host, "admin_email": t.admin.email, "admin_password": t.admin.password,
                })
            })
            .collect();
        let system = &self.organisations.system_admin;
        serde_json::json!({
            "https": self.https, "http": self.http, "admin": self.admin, "api": self.api, "api_admin": self.api_admin,
            "postgres": {
                "host": self.cluster.host(), "port": self.cluster.port(), "user": SUPERUSER,
                "password": self.cluster.password().expose_secret(),
            },
            "base_domain": self.base,
            "ca": self.dir.ca(),
            "config": self.dir.config(),
            "tenants": tenants,
            "system_admin": {
                "host": format!("admin.{}", self.base), "email": system.email, "password": system.password,
            },
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let port = self.https.port();
        let mut text = String::from("\ngmah is ready. Ctrl-C stops everything.\n\n");
        for t in &self.organisations.tenants {
            let url = format!("https://{}:{port}/", t.host);
            text.push_str(&format!("  {url:<48} {}  {}\n", t.admin.email, t.admin.password));
        }
        let (system, url) =
            (&self.organisations.system_admin, format!("https://admin.{}:{port}/api/docs/", self.base));
        text.push_str(&format!("\n  {url:<48} {}  {}   (the platform's)\n", system.email, system.password));
        let first = self.organisations.tenants.first().map_or("", |t| t.host.as_str());
        let cluster = self.cluster;
        text.push_str(&format!(
            "\n  try it      curl --cacert {ca} https://{first}:{port}/api/v1/tenant\n  metrics     curl \
             http://{admin}/metrics\n  psql        PGPASSWORD=$(cat {password}) psql -h {host} -p {pg_port} -U \
             {SUPERUSER} -l\n  commands    gmah --config {config} tenant list\n",
            ca = quoted(&self.dir.ca()),
            admin = self.admin,
            password = quoted(&self.dir.path("secrets/postgres.password")),
            host = cluster.host(),
            pg_port = cluster.port(),
            config = quoted(&self.dir.config()),
        ));
        text
    }
}

/// A path as a shell takes it: the printed lines work as they are.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@%:,".contains(&b));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        for (path, want) in [
            ("/a/b-c.d", "/a/b-c.d"),
            ("/my data/x", "'/my data/x'"),
            ("/it's", "'/it'\\''s'"),
            ("/$x", "'/$x'"),
        ] {
            assert_eq!(quoted(Path::new(path)), want);
        }
    }
}
