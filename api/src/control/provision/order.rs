//! What is asked for, and whether it can be had.

use gmah_shared::hostname::Hostname;
use gmah_shared::tenant::TenantSlug;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::control::{Control, ControlError, During as _, features, parse_slug};
use crate::language::Language;
use crate::modules;

/// What is asked for.
#[derive(Debug)]
pub struct NewTenant {
    /// Slug.
    pub slug: TenantSlug,
    /// Display name, 1 to 200 characters.
    pub name: String,
    /// E-mail address of the administrator.
    pub admin_email: String,
    /// Password of the administrator; a random one otherwise, and then a letter with a link to choose another.
    pub admin_password: Option<SecretString>,
    /// Of that letter; none: whoever asks tells the administrator by other means.
    pub language: Option<Language>,
    /// Custom domain, to be verified later.
    pub domain: Option<Hostname>,
    /// Key of a plan.
    pub plan: String,
    /// Keys of modules.
    pub modules: Vec<String>,
    /// Name of a server; the emptiest otherwise.
    pub server: Option<String>,
}

impl NewTenant {
    /// What an operation of the journal was asked for.
    pub(crate) fn of_journal(input: &Value) -> Result<Self, ControlError> {
        #[derive(serde::Deserialize)]
        struct Input {
            slug: String,
            name: String,
            admin_email: String,
            plan: String,
            modules: Vec<String>,
            server: Option<String>,
            domain: Option<Hostname>,
        }
        let input: Input = serde_json::from_value(input.clone())
            .map_err(|e| ControlError::Foreign(format!("the journal has an order that is none: {e}")))?;
        let slug = parse_slug(&input.slug)?;
        let Input { name, admin_email, plan, modules, server, domain, .. } = input;
        let (admin_password, language) = (None, Some(Language::default()));
        Ok(Self { slug, name, admin_email, admin_password, language, domain, plan, modules, server })
    }
}

impl Control {
    /// Refuses what is no plan.
    pub(crate) async fn check_plan(&self, plan: &str) -> Result<(), ControlError> {
        let plans = self
            .master
            .query("select key from plans order by position limit 100", &[])
            .await
            .during("reading the plans")?;
        let plans: Vec<String> = plans.iter().map(|r| r.get(0)).collect();
        if plans.iter().any(|p| p == plan) {
            return Ok(());
        }
        Err(ControlError::field("plan", format!("there is no plan {plan}; there are {}", plans.join(", "))))
    }
}

/// Refuses what is no name of an organisation.
pub(crate) fn check_name(name: &str) -> Result<(), ControlError> {
    if name.trim().is_empty() || name.chars().count() > 200 || name.chars().any(char::is_control) {
        return Err(ControlError::field("name", "a name has 1 to 200 characters and no control characters"));
    }
    Ok(())
}

/// Everything that can be wrong with the request, before anything is written.
pub(super) async fn check(control: &Control, new: &NewTenant) -> Result<(), ControlError> {
    check_name(&new.name)?;
    for key in &new.modules {
        if modules::find(key).is_none() {
            let known: Vec<_> = modules::OPTIONAL.iter().map(|m| m.key).collect();
            let why = format!("there is no module {key}; there are {}", known.join(", "));
            return Err(ControlError::field("modules", why));
        }
    }
    features::complete("modules", new.modules.iter().map(String::as_str).collect())?;
    if let Some(domain) = &new.domain {
        control.can_be_claimed("domain", domain)?;
    }
    control.check_plan(&new.plan).await
}

/// What two runs must agree on to be the same. Never a secret.
pub(super) fn input(new: &NewTenant) -> Value {
    json!({
        "slug": new.slug, "name": new.name, "admin_email": new.admin_email, "plan": new.plan,
        "modules": new.modules, "server": new.server, "domain": new.domain,
    })
}
