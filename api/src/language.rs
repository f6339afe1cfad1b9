//! Languages that people are answered in.

/// A language of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// French.
    Fr,
}

impl Language {
    /// The one of ours that an `Accept-Language` likes best (RFC 9110, section 12.5.4); English where it likes none.
    pub fn preferred(header: &str) -> Self {
        let mut best = (0, Self::default());
        for range in header.split(',').take(32) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let weight = match parameters.trim().strip_prefix("q=") {
                Some(q) => thousandths(q),
                None => Some(1000),
            };
            let Some(weight) = weight else { continue };
            let primary = tag.trim().split('-').next().unwrap_or_default();
            let language = match primary.to_ascii_lowercase().as_str() {
                "en" => Self::En,
                "fr" => Self::Fr,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, language);
            }
        }
        best.1
    }

    /// Its tag (RFC 5646).
    pub fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Fr => "fr",
        }
    }
}

/// `0.8` as 800 (RFC 9110, section 12.4.2).
fn thousandths(q: &str) -> Option<u32> {
    let q: f32 = q.trim().parse().ok()?;
    // Of 0 to 1 there is nothing to cut off.
    (0.0..=1.0).contains(&q).then_some((q * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_it_likes_best() {
        for (header, expected) in [
            ("", Language::En),
            ("fr", Language::Fr),
            ("fr-CA,fr;q=0.9,en;q=0.8", Language::Fr),
            ("de,en;q=0.5,fr;q=0.4", Language::En),
            ("en;q=0.1,FR ; q=0.3", Language::Fr),
            ("fr;q=0", Language::En),
            ("fr;q=nothing, *", Language::En),
            ("fr;q=2", Language::En),
            ("francais", Language::En),
        ] {
            assert_eq!(Language::preferred(header), expected, "{header}");
        }
    }
}
