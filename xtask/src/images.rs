//! `cargo xtask image`: writes the archives and says what is in them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use xtask::image::{self, Profile};

#[derive(clap::Args)]
pub(crate) struct Images {
    /// How the binaries are compiled
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Tag of the images
    #[arg(long, default_value = "dev")]
    tag: String,
    /// Folder to write the archives into; images/ in cargo's target directory when absent
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also the images that tests run beside the product: device plugin and example job
    #[arg(long)]
    tests: bool,
}

pub(crate) fn run(images: Images) -> Result<ExitCode> {
    let folder = images.out.unwrap_or_else(image::default_folder);
    let mut archives = image::product(images.profile, &images.tag, &folder)?;
    if images.tests {
        archives.extend(image::tests(images.profile, &images.tag, &folder)?);
    }
    for archive in archives {
        let mebibytes = archive.path.metadata()?.len() >> 20;
        println!("{}\t{mebibytes} MiB\t{}", archive.name, archive.path.display());
    }
    Ok(ExitCode::SUCCESS)
}
