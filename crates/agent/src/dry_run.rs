//! A kernel that is read but never changed: `--dry-run` and `plan`.

use std::process;

use dataplane::kernel::PresentServer;
use dataplane::{Kernel, KernelBroken, Op, OpError, Snapshot};
use foldhash::HashMap;
use ipvs::{RealServer, VirtualServer};

use crate::cli::EXIT_READER_GONE;
use crate::stdout::{print_lines, reader_is_gone};

/// Prints each op on standard output in place of executing it. Reads the kernel that it was given, if any.
pub(crate) struct DryRun<K> {
    inner: Option<K>,
}

/// No kernel at all.
pub(crate) enum Nowhere {}

impl DryRun<Nowhere> {
    /// Over an empty node.
    pub(crate) fn nowhere() -> Self {
        Self { inner: None }
    }
}

impl<K> DryRun<K> {
    /// Over a kernel that is read only; `None` = as if it were empty.
    pub(crate) fn over(inner: Option<K>) -> Self {
        Self { inner }
    }
}

impl<K: Kernel> Kernel for DryRun<K> {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        self.inner
            .as_mut()
            .map_or_else(|| Ok(Snapshot::default()), Kernel::read)
    }

    fn read_virtual_server(&mut self, server: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken> {
        self.inner
            .as_mut()
            .map_or(Ok(None), |kernel| kernel.read_virtual_server(server))
    }

    fn connections(&mut self, server: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken> {
        self.inner
            .as_mut()
            .map_or_else(|| Ok(HashMap::default()), |kernel| kernel.connections(server))
    }

    fn execute(&mut self, ops: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        match print_lines(ops) {
            Ok(()) => Ok(vec![Ok(()); ops.len()]),
            // The way to a kernel that broke is tried again for ever. There is nothing else that this process does.
            Err(error) if reader_is_gone(&error) => process::exit(EXIT_READER_GONE.into()),
            Err(error) => Err(KernelBroken {
                operation: "print the plan",
                source: error.into(),
            }),
        }
    }
}

impl Kernel for Nowhere {
    fn read(&mut self) -> Result<Snapshot, KernelBroken> {
        match *self {}
    }

    fn read_virtual_server(&mut self, _: &VirtualServer) -> Result<Option<PresentServer>, KernelBroken> {
        match *self {}
    }

    fn connections(&mut self, _: &VirtualServer) -> Result<HashMap<RealServer, u32>, KernelBroken> {
        match *self {}
    }

    fn execute(&mut self, _: &[Op]) -> Result<Vec<Result<(), OpError>>, KernelBroken> {
        match *self {}
    }
}
