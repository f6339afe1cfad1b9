//! `gmah module …`

use clap::{Args, Subcommand};
use gmah_api::control::parse_slug;
use gmah_api::control::tenants::Summary;
use gmah_shared::config::ConfigFile;

use super::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum ModuleCommand {
    /// Switches modules of an organisation on, making their tables first.
    Enable(Switch),
    /// Switches modules of an organisation off; what is in their tables stays.
    Disable(Switch),
    /// Lists modules, and whether an organisation has them.
    List(List),
}

#[derive(Debug, Args)]
pub(crate) struct Switch {
    /// Slug.
    slug: String,
    /// Modules.
    #[arg(required = true)]
    modules: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Slug.
    slug: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl ModuleCommand {
    pub(crate) async fn run(self, file: &ConfigFile) -> anyhow::Result<u8> {
        let mut control = super::control(file).await?;
        match self {
            Self::Enable(s) => {
                let now = control.enable_modules(&parse_slug(&s.slug)?, &s.modules).await?;
                print(s.output, &now)?;
            }
            Self::Disable(s) => {
                let now = control.disable_modules(&parse_slug(&s.slug)?, &s.modules).await?;
                print(s.output, &now)?;
            }
            Self::List(list) => {
                let slug = list.slug.as_deref().map(parse_slug).transpose()?;
                let modules = control.modules(slug.as_ref()).await?;
                list.output.print(&modules, || {
                    let mut text = String::new();
                    for m in &modules {
                        let state = match m.enabled {
                            Some(true) => "on  ",
                            Some(false) => "off ",
                            None => "",
                        };
                        text.push_str(&format!("{state}{:<12} {}\n", m.key, m.title));
                    }
                    text
                })?;
            }
        }
        Ok(0)
    }
}

fn print(output: Output, now: &Summary) -> anyhow::Result<()> {
    let value = serde_json::json!({ "slug": now.slug, "modules": now.modules });
    output.print(&value, || match now.modules.as_slice() {
        [] => format!("{} has no module", now.slug),
        on => format!("{} has {}", now.slug, on.join(", ")),
    })
}
