//! `cargo xtask image`: container images of kube-ipvs without a container engine, and by one where it is there.
//!
//! Reading order: [`binary`] (the static program), [`debian`] (files for the fallback), [`tree`] (files to a layer),
//! [`archive`] (layers to an image), [`platform`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use testbed::tool;

use crate::cargo::root;

pub(crate) mod archive;
mod binary;
pub(crate) mod debian;
pub(crate) mod platform;
pub(crate) mod tree;

use archive::Image;
use platform::Platform;
use tree::Tree;

/// The name of our images, without a tag.
pub(crate) const NAME: &str = "ghcr.io/kube-ipvs/kube-ipvs";
/// The program in the image.
const PROGRAM: &str = "usr/bin/kube-ipvs";
/// What kube-proxy's own DaemonSet executes, where only its image is exchanged: kubeadm 1.37 by this path
/// (cmd/kubeadm/app/phases/addons/proxy/manifests.go), others by its last part, since the folder is on the default path.
const KUBE_PROXY: &str = "usr/local/bin/kube-proxy";
/// The image without the fallback's programs stays below this.
const LIMIT: usize = 15_000_000;
/// What the iptables mode runs: both backends, and `/etc/protocols`.
const IPTABLES: &[&str] = &["iptables", "netbase"];

/// Which images are made.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For what: linux/amd64, linux/arm64; several make one image. Default: this machine's.
    #[arg(long, value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Only this one. Default: both.
    #[arg(long)]
    variant: Option<Variant>,
    /// Folder of the archives [default: target/image].
    #[arg(long)]
    output: Option<PathBuf>,
}

/// What is in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// The program alone, and the authorities of public API servers: the IPVS mode needs no more.
    Plain,
    /// And iptables, for a kernel without IPVS, and for nodes whose rules somebody else keeps in iptables.
    Iptables,
}

impl Variant {
    /// The tag: the version, with what makes it special.
    pub(crate) fn tag(self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        match self {
            Self::Plain => format!("v{version}"),
            Self::Iptables => format!("v{version}-iptables"),
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Iptables => "iptables",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let platforms = if args.platform.is_empty() {
        vec![Platform::here()]
    } else {
        args.platform.clone()
    };
    let variants = args
        .variant
        .map_or_else(|| vec![Variant::Plain, Variant::Iptables], |one| vec![one]);
    let folder = args.output.clone().unwrap_or_else(|| root().join("target/image"));
    for variant in variants {
        let archive = build(variant, &platforms, &folder)?;
        println!("  {}", archive.display());
        by_engine(variant, &platforms)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the archive of a variant and prints sizes.
///
/// # Errors
/// The build fails, or the plain image is larger than promised.
pub(crate) fn build(variant: Variant, platforms: &[Platform], folder: &Path) -> Result<PathBuf> {
    let mut images = Vec::new();
    for platform in platforms {
        let image = image(variant, *platform)?;
        let size: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
        println!("{} {platform}: {:.1} MB compressed", image.name, megabytes(size));
        ensure!(
            variant != Variant::Plain || size <= LIMIT,
            "the plain image has {size} bytes, more than {LIMIT}"
        );
        images.push(image);
    }
    fs::create_dir_all(folder)?;
    let archive = folder.join(format!("kube-ipvs-{}.tar", variant.tag()));
    archive::write(&images, &archive)?;
    Ok(archive)
}

fn image(variant: Variant, platform: Platform) -> Result<Image> {
    let program = fs::read(binary::build(platform)?).context("read the program")?;
    let mut layers = vec![files(program, debian::authorities(&cache())?).layer()?];
    if variant == Variant::Iptables {
        let mut tools = Tree::default();
        debian::add(&mut tools, IPTABLES, platform, &cache())?;
        // Below the program: it changes less often.
        layers.insert(0, tools.layer()?);
    }
    Ok(Image {
        name: format!("{NAME}:{}", variant.tag()),
        platform,
        layers,
        entrypoint: vec![format!("/{PROGRAM}")],
        arguments: Vec::new(),
        labels: vec![
            ("org.opencontainers.image.title".to_owned(), "kube-ipvs".to_owned()),
            ("org.opencontainers.image.version".to_owned(), variant.tag()),
            ("org.opencontainers.image.licenses".to_owned(), "Apache-2.0".to_owned()),
        ],
    })
}

/// The program, by its own name and by that of what it replaces, and what it trusts.
fn files(program: Vec<u8>, authorities: Vec<u8>) -> Tree {
    let mut files = Tree::default();
    files
        .file(PROGRAM, 0o755, program)
        .link(KUBE_PROXY, "../../bin/kube-ipvs")
        .file("etc/ssl/certs/ca-certificates.crt", 0o644, authorities);
    files
}

/// Where downloads are kept.
pub(crate) fn cache() -> PathBuf {
    root().join("target/image/cache")
}

/// Builds the Containerfile, too, where an engine is there and answers.
fn by_engine(variant: Variant, platforms: &[Platform]) -> Result<()> {
    let engines = ["docker", "podman", "buildah"];
    let Some(engine) = engines
        .iter()
        .find(|engine| tool::sh(&format!("{engine} info")).is_ok())
    else {
        println!(
            "  the Containerfile is not built: none of {} answers here",
            engines.join(", ")
        );
        return Ok(());
    };
    let names: Vec<_> = platforms.iter().map(ToString::to_string).collect();
    let mut command = Command::new(engine);
    command
        .current_dir(root())
        .args(["build", "--file", "deploy/Containerfile", "--target", variant.target()])
        .args(["--platform", &names.join(","), "--tag"])
        .arg(format!("{NAME}:{}", variant.tag()))
        .arg(".");
    tool::show(command).with_context(|| format!("build by {engine}"))
}

#[allow(clippy::cast_precision_loss, reason = "one decimal is printed")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;
    use serde_json::Value;

    use super::archive::sha256;
    use super::*;

    fn example(platform: Platform) -> Image {
        let mut files = Tree::default();
        files
            .file("usr/bin/program", 0o755, platform.name().as_bytes().to_vec())
            .link("bin", "usr/bin");
        Image {
            name: "example.org/program:v1".to_owned(),
            platform,
            layers: vec![files.layer().unwrap()],
            entrypoint: vec!["/usr/bin/program".to_owned()],
            arguments: Vec::new(),
            labels: vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())],
        }
    }

    /// Follows a descriptor to what it names, and sees that digest and size are those of the content.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(sha256(content), digest);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    /// An archive's files by path.
    fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        files.collect()
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// The layer's entries as path and kind or content.
    fn entries(layer: &[u8], diff_id: &Value) -> Vec<(String, u32, String)> {
        let mut plain = Vec::new();
        GzDecoder::new(layer).read_to_end(&mut plain).unwrap();
        assert_eq!(*diff_id, sha256(&plain));
        let mut archive = tar::Archive::new(plain.as_slice());
        let read = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let path = entry.path().unwrap().display().to_string();
            let mode = entry.header().mode().unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                content = format!("-> {}", target.display());
            }
            (path, mode, content)
        });
        read.collect()
    }

    /// A DaemonSet of kube-proxy's finds its program, and it is no second copy.
    #[test]
    fn the_program_is_found_under_kube_proxys_name() {
        let layer = files(b"program".to_vec(), Vec::new()).layer().unwrap();
        let entries = entries(&layer.bytes, &Value::from(layer.diff_id));
        let content = |path: &str| {
            let mut found = entries.iter().filter(|(name, ..)| name == path);
            found.next().map(|(.., content)| content.clone()).unwrap_or_default()
        };
        let target = content("usr/local/bin/kube-proxy");
        let target = target.strip_prefix("-> ").expect("a link");
        let mut path: Vec<_> = "usr/local/bin".split('/').collect();
        for part in target.split('/') {
            if part == ".." {
                path.pop();
            } else {
                path.push(part);
            }
        }
        assert_eq!(content(&path.join("/")), "program");
        assert_eq!(path.join("/"), PROGRAM);
    }

    #[test]
    fn an_archive_of_two_platforms_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        archive::write(&[example(Platform::Amd64), example(Platform::Arm64)], &path).unwrap();
        let files = read(&path);
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let top = &json(&files["index.json"])["manifests"];
        assert_eq!(top.as_array().unwrap().len(), 1);
        assert_eq!(
            top[0]["annotations"]["io.containerd.image.name"],
            "example.org/program:v1"
        );
        let index = json(blob(&files, &top[0]));
        for (number, name) in ["amd64", "arm64"].into_iter().enumerate() {
            let descriptor = &index["manifests"][number];
            assert_eq!(descriptor["platform"]["architecture"], name);
            let manifest = json(blob(&files, descriptor));
            let config = json(blob(&files, &manifest["config"]));
            assert_eq!(config["architecture"], name);
            assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/program");
            let layer = blob(&files, &manifest["layers"][0]);
            let entries = entries(layer, &config["rootfs"]["diff_ids"][0]);
            let entries: Vec<_> = entries
                .iter()
                .map(|(path, mode, content)| (path.as_str(), *mode, content.as_str()))
                .collect();
            assert_eq!(
                entries,
                [
                    ("bin", 0o777, "-> usr/bin"),
                    ("usr/", 0o755, ""),
                    ("usr/bin/", 0o755, ""),
                    ("usr/bin/program", 0o755, name)
                ]
            );
        }
    }

    #[test]
    fn one_platform_needs_no_index_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        archive::write(&[example(Platform::Amd64)], &path).unwrap();
        let files = read(&path);
        let top = json(&files["index.json"]);
        assert_eq!(
            top["manifests"][0]["mediaType"],
            "application/vnd.oci.image.manifest.v1+json"
        );
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            archive::write(&[example(Platform::Amd64), example(Platform::Arm64)], &path).unwrap();
            fs::read(path).unwrap()
        };
        assert_eq!(write("first"), write("second"));
    }
}
