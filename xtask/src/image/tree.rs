//! The files of an image, and the layer that they make: in one order and without times, so that the same files always
//! give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::archive::sha256;

/// Files by path, without a slash at the beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

#[derive(Clone, Debug)]
enum Node {
    Folder(u32),
    File(u32, Vec<u8>),
    Link(String),
}

/// A layer, compressed.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    /// Digest of what is in it, uncompressed.
    pub(crate) diff_id: String,
}

impl Tree {
    /// A file that root owns. Folders above it come by themselves.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        self.put(path, Node::File(mode, content))
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, Node::Link(target.to_owned()))
    }

    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.put(path, Node::Folder(mode))
    }

    fn put(&mut self, path: &str, node: Node) -> &mut Self {
        for (end, _) in path.match_indices('/') {
            let above = path.get(..end).unwrap_or_default().to_owned();
            self.0.entry(above).or_insert(Node::Folder(0o755));
        }
        self.0.insert(path.to_owned(), node);
        self
    }

    /// Takes over a folder's files. `place` tells where a path goes; `None` = nowhere.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn take(&mut self, folder: &Path, place: &impl Fn(&str) -> Option<String>) -> Result<()> {
        self.take_below(folder, "", place)
    }

    fn take_below(&mut self, root: &Path, below: &str, place: &impl Fn(&str) -> Option<String>) -> Result<()> {
        for entry in fs::read_dir(root.join(below)).with_context(|| format!("read {below}"))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name that is no text")?;
            let path = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.take_below(root, &path, place)?;
                continue;
            }
            let Some(to) = place(&path) else { continue };
            if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.link(&to, &target.to_string_lossy());
            } else {
                let content = fs::read(entry.path()).with_context(|| format!("read {path}"))?;
                self.file(&to, entry.metadata()?.permissions().mode() & 0o7777, content);
            }
        }
        Ok(())
    }

    /// Archives and compresses it.
    pub(crate) fn layer(&self) -> Result<Layer> {
        let mut archive = Builder::new(Vec::new());
        for (path, node) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match node {
                Node::Folder(mode) => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    archive.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Node::File(mode, content) => {
                    header.set_mode(*mode);
                    header.set_size(content.len().try_into()?);
                    archive.append_data(&mut header, path, content.as_slice())?;
                }
                Node::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        let plain = archive.into_inner()?;
        let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
        compressed.write_all(&plain)?;
        Ok(Layer {
            bytes: compressed.finish()?,
            diff_id: sha256(&plain),
        })
    }
}
