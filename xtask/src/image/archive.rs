//! An OCI image layout as one archive: what `ctr images import`, `podman load` and `kind load image-archive` take. No
//! daemon makes it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use oci_spec::image::{
    ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
    OciLayoutBuilder, Os, RootFsBuilder,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::platform::Platform;
use super::tree::Layer;

/// The annotation by which containerd names what it imports; the other one is the specification's.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image of one platform.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// With its tag.
    pub(crate) name: String,
    pub(crate) platform: Platform,
    pub(crate) layers: Vec<Layer>,
    pub(crate) entrypoint: Vec<String>,
    /// Arguments where a container gives none.
    pub(crate) arguments: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
}

/// `sha256:` and the digest.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// Writes images into one archive. Those of one name become one image of several platforms.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(images: &[Image], to: &Path) -> Result<()> {
    let mut blobs = Blobs::default();
    let mut named: BTreeMap<&str, Vec<Descriptor>> = BTreeMap::new();
    for image in images {
        let mut manifest = manifest(image, &mut blobs)?;
        manifest.set_platform(Some(image.platform.oci()?));
        named.entry(&image.name).or_default().push(manifest);
    }
    let mut top = Vec::new();
    for (name, manifests) in named {
        let mut descriptor = match <[Descriptor; 1]>::try_from(manifests) {
            Ok([manifest]) => manifest,
            Err(manifests) => blobs.add(MediaType::ImageIndex, index(manifests)?.into_bytes())?,
        };
        let names = NAMES.map(|annotation| (annotation.to_owned(), name.to_owned()));
        descriptor.set_annotations(Some(names.into()));
        top.push(descriptor);
    }
    let mut files = BTreeMap::from([
        (
            "oci-layout".to_owned(),
            OciLayoutBuilder::default()
                .image_layout_version("1.0.0")
                .build()?
                .to_string()?
                .into_bytes(),
        ),
        ("index.json".to_owned(), index(top)?.into_bytes()),
    ]);
    files.extend(blobs.0);
    let mut archive = Builder::new(File::create(to).with_context(|| format!("create {}", to.display()))?);
    for (path, content) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len().try_into()?);
        archive.append_data(&mut header, path, content.as_slice())?;
    }
    archive.finish()?;
    Ok(())
}

/// Files by their digests.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest = sha256(&content);
        let descriptor = Descriptor::new(kind, content.len().try_into()?, digest.parse::<Digest>()?);
        self.0.insert(format!("blobs/{}", digest.replace(':', "/")), content);
        Ok(descriptor)
    }
}

fn manifest(image: &Image, blobs: &mut Blobs) -> Result<Descriptor> {
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let mut config = ConfigBuilder::default()
        .entrypoint(image.entrypoint.clone())
        .env(vec!["PATH=/usr/sbin:/usr/bin".to_owned()])
        .labels(image.labels.iter().cloned().collect::<HashMap<_, _>>());
    if !image.arguments.is_empty() {
        config = config.cmd(image.arguments.clone());
    }
    let config = config.build()?;
    let config = ImageConfigurationBuilder::default()
        .architecture(image.platform.oci_arch())
        .os(Os::Linux)
        .config(config)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
        .build()?;
    let config = blobs.add(MediaType::ImageConfig, ordered(&config.to_string()?)?.into_bytes())?;
    let layers = image
        .layers
        .iter()
        .map(|layer| blobs.add(MediaType::ImageLayerGzip, layer.bytes.clone()))
        .collect::<Result<Vec<_>>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()?;
    blobs.add(MediaType::ImageManifest, manifest.to_string()?.into_bytes())
}

fn index(manifests: Vec<Descriptor>) -> Result<String> {
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    ordered(&index.to_string()?)
}

/// As JSON whose keys are in order: labels and annotations are hash maps there.
fn ordered(text: &str) -> Result<String> {
    Ok(serde_json::from_str::<Value>(text)?.to_string())
}
