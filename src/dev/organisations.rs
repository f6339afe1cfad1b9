//! Demo organisations, each with an administrator and a few hundred people.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

use anyhow::Context as _;
use gmah_api::control::admins::Role;
use gmah_api::control::provision::NewTenant;
use gmah_api::control::{Control, ControlError, parse_slug};
use gmah_shared::secret::random_password;
use secrecy::ExposeSecret as _;

use super::files::{DataDir, write_private};

/// What there is to try.
pub(super) struct Demo {
    pub(super) tenants: Vec<DemoTenant>,
    pub(super) system_admin: Login,
}

/// One organisation.
pub(super) struct DemoTenant {
    pub(super) slug: &'static str,
    pub(super) host: String,
    pub(super) admin: Login,
}

/// Somebody who can log in.
pub(super) struct Login {
    pub(super) email: String,
    pub(super) password: String,
}

const DEMO: [(&str, &str, &str); 3] = [
    ("paris", "GMAH Paris", "loans"),
    ("lyon", "GMAH Lyon", "loans"),
    ("hopital-central", "Hôpital central", "patients"),
];

/// Creates what is missing. Passwords are kept in `credentials.json`, which only this user can read.
pub(super) async fn ensure(control: &mut Control, dir: &DataDir) -> anyhow::Result<Demo> {
    let base = control.settings.base_domain.clone();
    let mut credentials = Credentials::load(dir)?;
    let mut tenants = Vec::new();
    for (slug, name, module) in DEMO {
        let admin = credentials.login(slug, format!("admin@{slug}.example"))?;
        let slug_parsed = parse_slug(slug)?;
        control
            .create_tenant(NewTenant {
                slug: slug_parsed.clone(),
                name: name.into(),
                admin_email: admin.email.clone(),
                admin_password: Some(admin.password.clone().into()),
                language: None,
                domain: None,
                plan: "professional".into(),
                modules: vec![module.into()],
                server: None,
            })
            .await
            .with_context(|| format!("demo organisation {slug}"))?;
        match control.seed(&slug_parsed).await {
            // Its database may be away on purpose, in a folder that somebody experiments in.
            Err(e @ ControlError::Database { .. }) => tracing::warn!(error = %e, slug, "not seeded"),
            other => {
                other?;
            }
        }
        tenants.push(DemoTenant { slug, host: format!("{slug}.{base}"), admin });
    }
    let system_admin = credentials.login("", format!("admin@{base}"))?;
    match control
        .create_admin(&system_admin.email, Role::Owner, Some(system_admin.password.clone().into()))
        .await
    {
        Ok(_) | Err(ControlError::Refused(_)) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(Demo { tenants, system_admin })
}

struct Credentials<'a> {
    dir: &'a DataDir,
    passwords: BTreeMap<String, String>,
}

impl<'a> Credentials<'a> {
    fn load(dir: &'a DataDir) -> anyhow::Result<Self> {
        let passwords = match fs::read(dir.path("credentials.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("credentials.json")?,
            Err(e) if e.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e).context("credentials.json"),
        };
        Ok(Self { dir, passwords })
    }

    /// The password of an address, stored before anything is made with it.
    fn login(&mut self, slug: &str, email: String) -> anyhow::Result<Login> {
        let key = format!("{slug}/{email}");
        if let Some(password) = self.passwords.get(&key) {
            return Ok(Login { email, password: password.clone() });
        }
        let password = random_password().expose_secret().to_owned();
        self.passwords.insert(key, password.clone());
        write_private(&self.dir.path("credentials.json"), &serde_json::to_vec_pretty(&self.passwords)?)?;
        Ok(Login { email, password })
    }
}
