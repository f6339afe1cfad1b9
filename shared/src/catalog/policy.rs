//! What the edge does with a tenant's requests: limits, maintenance, pools of its own, how its pages look.
//!
//! Read from text that operators wrote, so everything is checked here, and what is not valid counts as not there: a
//! misspelt colour must not take an organisation off the net.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use serde_json::Value;

/// What goes for a tenant's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// How much, how often, how many at once.
    pub limits: Limits,
    /// Set while it is worked on.
    pub maintenance: Option<Box<Maintenance>>,
    /// Backends of its own.
    pub pools: Option<Box<PoolOverrides>>,
    /// How pages look that the edge writes for it.
    pub branding: Option<Box<Branding>>,
}

/// The plan's numbers, where the organisation has none of its own. None is no limit of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second, in the long run.
    pub requests_per_second: Option<NonZeroU32>,
    /// Requests at once after a quiet time. Without one: a second's worth.
    pub request_burst: Option<NonZeroU32>,
    /// Requests in flight.
    pub concurrent_requests: Option<NonZeroU32>,
    /// Largest request body in bytes; the edge's own limit holds as well.
    pub max_body_bytes: Option<NonZeroU64>,
    /// Its share, beside others, of an edge that has too much to do.
    pub weight: u32,
}

/// How an organisation is being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// What is served meanwhile.
    pub mode: MaintenanceMode,
    /// What `Retry-After` says, in seconds.
    pub retry_after: u32,
    /// SHA-256 of the secret with which requests pass all the same.
    pub bypass: Option<[u8; 32]>,
}

/// What is served while an organisation is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaintenanceMode {
    /// Nothing.
    Full,
    /// Requests wait, so many at most and so long at most, and go on when it is over.
    Hold {
        /// How long.
        patience: Duration,
        /// How many at once.
        requests: u32,
    },
    /// Safe methods (RFC 9110, section 9.2.1).
    ReadOnly,
}

/// Pools of an organisation's own in place of those that others share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOverrides(Box<[(Box<str>, Box<str>)]>);

impl PoolOverrides {
    /// From `{"api": "api-large"}`. None where there is none.
    pub fn parse(value: &Value) -> Option<Self> {
        let pairs: Box<[_]> = value
            .as_object()?
            .iter()
            .filter_map(|(pool, own)| Some((pool.as_str().into(), own.as_str()?.into())))
            .collect();
        (!pairs.is_empty()).then_some(Self(pairs))
    }

    /// Its own pool in place of the named one.
    pub fn instead_of(&self, pool: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| &**name == pool).map(|(_, own)| &**own)
    }
}

/// How pages look that the edge writes for an organisation: `settings.branding`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branding {
    /// Its name.
    pub name: Box<str>,
    /// `https:` address of its logo, without anything that could end an attribute.
    pub logo_url: Option<Box<str>>,
    /// Colour of headings and lines, as `#rrggbb`.
    pub primary_color: Option<Box<str>>,
    /// Colour behind everything, as `#rrggbb`.
    pub background_color: Option<Box<str>>,
}

impl Branding {
    /// From the organisation's name and `settings.branding`. None where there is nothing to show beyond what every page
    /// has.
    pub fn parse(name: &str, value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let color = |key: &str| text(key).filter(|c| is_color(c)).map(Into::into);
        Some(Self {
            name: text("name").filter(|n| !n.trim().is_empty() && n.len() <= 200).unwrap_or(name).into(),
            logo_url: text("logo_url").filter(|u| is_logo(u)).map(Into::into),
            primary_color: color("primary_color"),
            background_color: color("background_color"),
        })
    }
}

fn is_color(text: &str) -> bool {
    text.strip_prefix('#').is_some_and(|hex| hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An address that stays what it is within a quoted attribute and a policy header.
fn is_logo(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?&=%+".contains(&b);
    text.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && text.len() <= 500
        && text.bytes().all(plain)
}

impl Limits {
    /// The plan's numbers with the organisation's own in their place. What is no positive number is not there.
    pub fn with_own(mut self, own: &Value) -> Self {
        let number = |key: &str| own.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
        let small =
            |key: &str| number(key).and_then(|n| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX)));
        self.requests_per_second = small("requests_per_second").or(self.requests_per_second);
        self.request_burst = small("request_burst").or(self.request_burst);
        self.concurrent_requests = small("concurrent_requests").or(self.concurrent_requests);
        self.max_body_bytes = number("max_body_bytes").and_then(NonZeroU64::new).or(self.max_body_bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn own_numbers_go_before_the_plans() {
        let plan = Limits {
            requests_per_second: NonZeroU32::new(50),
            concurrent_requests: NonZeroU32::new(10),
            weight: 2,
            ..Limits::default()
        };
        let own =
            json!({"requests_per_second": 5, "concurrent_requests": 0, "max_body_bytes": "1", "members": 7});
        let merged = plan.with_own(&own);
        assert_eq!(merged.requests_per_second, NonZeroU32::new(5));
        assert_eq!((merged.concurrent_requests, merged.max_body_bytes), (NonZeroU32::new(10), None));
        assert_eq!(plan.with_own(&json!({})), plan);
        assert_eq!(plan.with_own(&json!("junk")), plan);
        let huge = plan.with_own(&json!({"requests_per_second": u64::MAX}));
        assert_eq!(huge.requests_per_second, NonZeroU32::new(u32::MAX));
    }

    #[test]
    fn only_what_is_harmless_in_a_page() {
        let parse = |v: Value| Branding::parse("Paris", &v);
        let good = parse(
            json!({"name": "<b>", "logo_url": "https://x.example/a.png?v=1", "primary_color": "#aB0123"}),
        );
        let good = good.expect("branding");
        assert_eq!(&*good.name, "<b>", "escaped where it is written");
        assert_eq!(good.logo_url.as_deref(), Some("https://x.example/a.png?v=1"));
        assert_eq!(good.primary_color.as_deref(), Some("#aB0123"));
        for logo in [
            "http://x/a",
            "javascript:1",
            "https://x/\"",
            "https://x/a b",
            "https:///x",
            "https://x/;script-src *",
        ] {
            assert_eq!(parse(json!({ "logo_url": logo })).and_then(|b| b.logo_url), None, "{logo}");
        }
        for color in ["red", "#12345", "#12345g", "#123456;", "#1234567"] {
            assert_eq!(
                parse(json!({ "primary_color": color })).and_then(|b| b.primary_color),
                None,
                "{color}"
            );
        }
        assert_eq!(parse(json!(null)), None);
        assert_eq!(&*parse(json!({"name": " "})).expect("branding").name, "Paris");
    }

    #[test]
    fn pools_of_ones_own() {
        let own = PoolOverrides::parse(&json!({"api": "large", "x": 1})).expect("one");
        assert_eq!(
            (own.instead_of("api"), own.instead_of("x"), own.instead_of("frontend")),
            (Some("large"), None, None)
        );
        assert_eq!(PoolOverrides::parse(&json!({})), None);
    }
}
