//! The small page that a refusal is for whoever prefers HTML, in the organisation's name, logo and colours where one is
//! known.
//!
//! It can do nothing: no script, no form, no frame, styles by nonce, images from the logo's own host only.

use askama::Template;
use gmah_shared::catalog::Branding;

use crate::reject::Row;

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    status: u16,
    code: &'a str,
    title: &'a str,
    request_id: &'a str,
    nonce: &'a str,
    name: &'a str,
    logo: Option<&'a str>,
    primary: &'a str,
    background: Option<&'a str>,
}

/// A page and the policy that goes with it (`Content-Security-Policy`).
pub struct Rendered {
    /// HTML.
    pub html: String,
    /// The policy.
    pub policy: String,
}

/// The page of a refusal.
pub fn render(row: Row, request_id: &str, branding: Option<&Branding>) -> Rendered {
    let nonce = uuid::Builder::from_random_bytes(rand::random()).into_uuid().simple().to_string();
    let logo = branding.and_then(|b| b.logo_url.as_deref());
    let page = Page {
        status: row.status,
        code: row.code,
        title: row.title,
        request_id,
        nonce: &nonce,
        name: branding.map_or("", |b| &b.name),
        logo,
        primary: branding.and_then(|b| b.primary_color.as_deref()).unwrap_or("#556677"),
        background: branding.and_then(|b| b.background_color.as_deref()),
    };
    // Only a template that does not fit its fields fails, and the compiler has seen that it does.
    let html = page.render().unwrap_or_else(|_| row.title.to_owned());
    let images = logo.and_then(origin).unwrap_or("'none'");
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; img-src {images}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    Rendered { html, policy }
}

/// `https://host` of an address.
fn origin(url: &str) -> Option<&str> {
    let host = url.strip_prefix("https://")?;
    let end = host.find(['/', '?']).unwrap_or(host.len());
    url.get(.."https://".len() + end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::Rejection;

    #[test]
    fn branded_escaped_and_locked_down() {
        let value = serde_json::json!({
            "name": "<script>alert(1)</script>", "logo_url": "https://cdn.example/a/b.png?x=1",
            "primary_color": "#aa0011",
        });
        let branding = Branding::parse("Paris", &value).expect("branding");
        let page = render(Rejection::Suspended.row(), "id", Some(&branding));
        assert!(!page.html.contains("<script>"), "{}", page.html);
        assert!(page.html.contains("--primary:#aa0011"), "{}", page.html);
        assert!(page.html.contains("src=\"https://cdn.example/a/b.png?x=1\""), "{}", page.html);
        assert!(page.policy.starts_with("default-src 'none'"));
        assert!(page.policy.contains("img-src https://cdn.example;"), "{}", page.policy);
        let nonce = page.policy.split("'nonce-").nth(1).and_then(|r| r.split('\'').next()).expect("nonce");
        assert_eq!(page.html.matches(nonce).count(), 1);
        let other = render(Rejection::Suspended.row(), "id", None);
        assert!(!other.policy.contains(nonce) && other.policy.contains("img-src 'none'"));
        assert!(other.html.contains("This organisation is suspended."));
    }
}
