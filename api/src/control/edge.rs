//! What operators set for the edge: an organisation's own limits, pools and branding, and its maintenance.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gmah_shared::catalog::Branding;
use gmah_shared::tenant::TenantSlug;
use ring::digest::{SHA256, digest};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::tenants::Summary;
use super::{Control, ControlError, During as _};

/// What to set, by kind; `null` takes a value away.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct EdgeSettings {
    limits: Map<String, Value>,
    pools: Map<String, Value>,
    branding: Map<String, Value>,
}

/// Numbers that an organisation may have of its own.
const LIMITS: [&str; 7] = [
    "members",
    "users",
    "storage_bytes",
    "requests_per_second",
    "request_burst",
    "concurrent_requests",
    "max_body_bytes",
];
/// Texts that its pages may show.
const BRANDING: [&str; 4] = ["name", "logo_url", "primary_color", "background_color"];

impl EdgeSettings {
    /// With what `others` sets as well.
    pub fn and(mut self, others: Self) -> Self {
        self.limits.extend(others.limits);
        self.pools.extend(others.pools);
        self.branding.extend(others.branding);
        self
    }

    /// From `KEY=VALUE` words: `limits.NAME=NUMBER`, `pool.NAME=POOL`, `branding.NAME=TEXT`; the value `default` takes the
    /// organisation's own away.
    ///
    /// # Errors
    /// [`ControlError::Usage`] with the word that cannot be right.
    pub fn parse(words: &[String]) -> Result<Self, ControlError> {
        let mut settings = Self::default();
        for word in words {
            let usage = |message: &str| ControlError::Usage(format!("{word:?}: {message}"));
            let (key, value) = word.split_once('=').ok_or_else(|| usage("not KEY=VALUE"))?;
            let own = (value != "default").then_some(value);
            let known = |names: &[&str], name: &str| {
                if names.contains(&name) {
                    Ok(())
                } else {
                    Err(usage(&format!("one of {}", names.join(", "))))
                }
            };
            match key.split_once('.') {
                Some(("limits", name)) => {
                    known(&LIMITS, name)?;
                    let number = |v: &str| match v.parse::<i64>() {
                        Ok(n) if n > 0 && (n <= i64::from(u32::MAX) || name == "storage_bytes") => {
                            Ok(json!(n))
                        }
                        _ => Err(usage("a whole number from 1 to 4294967295, or default")),
                    };
                    settings.limits.insert(name.into(), own.map(number).transpose()?.unwrap_or(Value::Null));
                }
                Some(("pool", name)) => {
                    let is_name = |n: &str| !n.is_empty() && n.len() <= 63 && n.bytes().all(is_name_byte);
                    if !is_name(name) || !own.is_none_or(is_name) {
                        return Err(usage("names of pools are a-z, 0-9, - and _"));
                    }
                    settings.pools.insert(name.into(), own.into());
                }
                Some(("branding", name)) => {
                    known(&BRANDING, name)?;
                    if let Some(text) = own {
                        // The edge's own reading decides what is harmless.
                        let read = Branding::parse("", &json!({ name: text }));
                        let taken = read.is_some_and(|b| match name {
                            "name" => &*b.name == text,
                            "logo_url" => b.logo_url.is_some(),
                            "primary_color" => b.primary_color.is_some(),
                            _ => b.background_color.is_some(),
                        });
                        if !taken {
                            return Err(usage(
                                "a name has at most 200 bytes, a colour is #rrggbb, a logo an https address",
                            ));
                        }
                    }
                    settings.branding.insert(name.into(), own.into());
                }
                _ => return Err(usage("keys are limits.NAME, pool.NAME and branding.NAME")),
            }
        }
        Ok(settings)
    }
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
}

/// How an organisation is closed for work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Open.
    Off,
    /// 503 for everything.
    Full,
    /// Requests wait for at most `seconds`, `requests` of them at most.
    Hold {
        /// How long one waits.
        seconds: u16,
        /// How many wait at once.
        requests: u32,
    },
    /// Safe methods are served.
    ReadOnly,
}

/// What came of opening or closing.
pub struct Maintained {
    /// The organisation, as it is now.
    pub tenant: Summary,
    /// The secret with which requests pass all the same, where one was asked for. It cannot be shown again.
    pub bypass: Option<SecretString>,
}

impl Control {
    /// Sets what goes for an organisation at the edge; what is not named stays.
    ///
    /// # Errors
    /// [`ControlError::NoTenant`].
    pub async fn set_edge(&self, slug: &TenantSlug, to: EdgeSettings) -> Result<Summary, ControlError> {
        let changed = json!({ "limits": to.limits, "pool": to.pools, "branding": to.branding });
        self.master
            .execute(
                "with change as (
                     update organizations set
                         limits = jsonb_strip_nulls(limits || $2),
                         pools = jsonb_strip_nulls(pools || $3),
                         settings = jsonb_set(settings, '{branding}',
                             jsonb_strip_nulls(coalesce(settings -> 'branding', '{}') || $4))
                     where slug = $1 and status <> 'deleted' returning id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $6, 'tenant.set', id, $5 from change",
                &[
                    &slug.as_str(),
                    &Value::Object(to.limits),
                    &Value::Object(to.pools),
                    &Value::Object(to.branding),
                    &changed,
                    &self.actor,
                ],
            )
            .await
            .during("changing the settings")?;
        self.tenant(slug).await
    }

    /// Closes an organisation for work on it, or opens it again. `retry_after` is in seconds. With `with_bypass` a new
    /// secret is made; an older one ends either way.
    ///
    /// # Errors
    /// [`ControlError::Refused`] unless it is active or in maintenance.
    pub async fn set_maintenance(
        &self,
        slug: &TenantSlug,
        mode: Mode,
        retry_after: u32,
        with_bypass: bool,
    ) -> Result<Maintained, ControlError> {
        let bypass =
            (with_bypass && mode != Mode::Off).then(|| URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>()));
        let hash = bypass.as_ref().map(|secret| digest(&SHA256, secret.as_bytes()).as_ref().to_vec());
        let (name, status) = match mode {
            Mode::Off => (None, "active"),
            Mode::Full => (Some("full"), "maintenance"),
            Mode::Hold { .. } => (Some("hold"), "active"),
            Mode::ReadOnly => (Some("read_only"), "active"),
        };
        let (seconds, requests) = match mode {
            Mode::Hold { seconds, requests } => {
                (Some(i32::from(seconds)), Some(i32::try_from(requests).unwrap_or(i32::MAX)))
            }
            _ => (None, None),
        };
        let retry_after = i32::try_from(retry_after).unwrap_or(i32::MAX);
        let changed = self
            .master
            .execute(
                "with change as (
                     update organizations set status = $2, maintenance_mode = $3, maintenance_retry_after = $4,
                         maintenance_bypass = $5,
                         maintenance_hold_seconds = coalesce($6, maintenance_hold_seconds),
                         maintenance_hold_requests = coalesce($7, maintenance_hold_requests)
                     where slug = $1 and status in ('active', 'maintenance') returning id)
                 insert into audit_log (actor, action, organization_id, detail)
                 select $8, 'tenant.maintenance', id, jsonb_build_object('mode', coalesce($3, 'off')) from change",
                &[&slug.as_str(), &status, &name, &retry_after, &hash, &seconds, &requests, &self.actor],
            )
            .await
            .during("changing the maintenance")?;
        let tenant = self.tenant(slug).await?;
        if changed == 0 {
            return Err(ControlError::Refused(format!(
                "{slug} is {} and cannot be put into or out of maintenance",
                tenant.status
            )));
        }
        Ok(Maintained { tenant, bypass: bypass.map(SecretString::from) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<EdgeSettings, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        EdgeSettings::parse(&words).map_err(|e| e.to_string())
    }

    #[test]
    fn words_and_their_faults() {
        let good =
            parse(&["limits.requests_per_second=5", "pool.api=large", "branding.primary_color=#112233"]);
        let good = good.expect("good");
        assert_eq!(good.limits["requests_per_second"], 5);
        assert_eq!(
            (&good.pools["api"], &good.branding["primary_color"]),
            (&json!("large"), &json!("#112233"))
        );
        assert_eq!(parse(&["limits.members=default"]).expect("good").limits["members"], Value::Null);
        for bad in [
            "limits.members",
            "limits.members=0",
            "limits.members=-1",
            "limits.members=many",
            "limits.nothing=1",
            "pool.=x",
            "pool.api=",
            "pool.api=a b",
            "branding.primary_color=red",
            "branding.logo_url=http://x/",
            "branding.motto=x",
            "color=red",
            "=",
        ] {
            assert!(parse(&[bad]).expect_err(bad).contains(bad), "{bad}");
        }
    }
}
