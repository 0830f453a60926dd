//! The configuration: kube-proxy's flags or its file, and ours beside them, brought together, completed and validated.
//!
//! Reading order: [`kube_proxy`] and [`own`] (what there is to set), [`fill`] (what stands where nothing is set),
//! [`document`] and [`flag`] (how it is given), [`validation`] and [`doubt`] (what is wrong), [`output`] (how it is shown).
//! With a file, flags that the file covers are ignored, but for `--hostname-override` and those of logging: kube-proxy's
//! rule. Ours hold before the file.

mod address;
mod document;
mod doubt;
mod duration;
mod feature_gate;
mod file;
mod fill;
mod flag;
mod flag_table;
mod flag_value;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gate_table;
mod kube_proxy;
mod logging;
mod no_effect;
mod node_port_address;
mod output;
mod own;
mod tree;
mod validation;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tracing::{info, warn};

pub(crate) use self::address::{cidr, ip, socket};
pub(crate) use self::duration::GoDuration;
pub(crate) use self::feature_gate::{FeatureGate, allow_service_external_ips, in_use, serves_flagz, serves_statusz};
pub(crate) use self::file::ConfigFile;
pub(crate) use self::flag::Flags;
pub(crate) use self::flag_table::{LogFlags, OwnFlags, ProxyFlags, RunFlags, ServiceFlags};
pub(crate) use self::flag_value::parse_bool;
pub(crate) use self::gate_table::KUBERNETES_RELEASE;
pub(crate) use self::kube_proxy::KubeProxyConfiguration;
pub(crate) use self::logging::LoggingConfiguration;
pub(crate) use self::node_port_address::NodePortAddress;
pub(crate) use self::own::{Fallback, ForwardAccept, KubeIpvsConfiguration, SecondInstance};

use self::document::Documents;
use self::doubt::Doubt;
use self::fill::{HEALTHZ_PORT, METRICS_PORT};
use crate::cli::ConfigurationArgs;
use crate::ip_family;
use crate::mode::ModeOrigin;

/// Complete and valid.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) kube_proxy: KubeProxyConfiguration,
    pub(crate) own: KubeIpvsConfiguration,
    /// The file that it comes from.
    pub(crate) file: Option<ConfigFile>,
    /// Who says which mode.
    pub(crate) mode_origin: ModeOrigin,
    /// What was odd about it, for the log, which is set up by it.
    remarks: Vec<String>,
}

impl Configuration {
    /// # Errors
    /// The file cannot be read or decoded, or values are not valid: all of them are named.
    pub(crate) fn load(args: &ConfigurationArgs) -> Result<Self> {
        let mut loaded = match &args.config {
            Some(path) => Self::of_file(args, path)?,
            None => Self::of_flags(args),
        };
        loaded.remarks.extend(deprecated(args));
        set_hostname(&mut loaded.kube_proxy, &args.service)?;
        loaded.own = args.own.over(&args.run.over(&loaded.own));
        loaded.complete()
    }

    fn of(kube_proxy: KubeProxyConfiguration) -> Self {
        Self {
            kube_proxy,
            own: KubeIpvsConfiguration::default(),
            file: None,
            mode_origin: ModeOrigin::Flag,
            remarks: Vec::new(),
        }
    }

    fn of_file(args: &ConfigurationArgs, path: &Path) -> Result<Self> {
        let file = ConfigFile::open(path)?;
        let Documents {
            mut kube_proxy,
            own,
            mut remarks,
        } = document::read(file.content()).with_context(|| format!("configuration {}", path.display()))?;
        // Those of the flags come first, as upstream joins them.
        let patterns = std::mem::take(&mut kube_proxy.logging.vmodule);
        kube_proxy = args.log.over(&kube_proxy);
        kube_proxy.logging.vmodule.extend(patterns);
        let ignored: Vec<_> = args
            .service
            .names()
            .filter(|name| *name != "hostname-override")
            .chain(args.proxy.names())
            .chain(args.healthz_port.map(|_| "healthz-port"))
            .chain(args.metrics_port.map(|_| "metrics-port"))
            .collect();
        if !ignored.is_empty() {
            remarks.push(format!(
                "with --config these flags are ignored: --{}",
                ignored.join(", --")
            ));
        }
        Ok(Self {
            kube_proxy,
            own: own.unwrap_or_default(),
            file: Some(file),
            mode_origin: ModeOrigin::File,
            remarks,
        })
    }

    fn of_flags(args: &ConfigurationArgs) -> Self {
        let defaults = KubeProxyConfiguration::defaults();
        let mut kube_proxy = args.log.over(&args.proxy.over(&args.service.over(&defaults)));
        // As upstream: what is written has no place for the deprecated ports.
        if args.write_config_to.is_none() {
            let healthz = &mut kube_proxy.healthz_bind_address;
            *healthz = with_deprecated_port(healthz, args.healthz_port.unwrap_or(HEALTHZ_PORT));
            let metrics = &mut kube_proxy.metrics_bind_address;
            *metrics = with_deprecated_port(metrics, args.metrics_port.unwrap_or(METRICS_PORT));
        }
        Self::of(kube_proxy)
    }

    fn complete(mut self) -> Result<Self> {
        if self.kube_proxy.mode.is_empty() {
            self.mode_origin = ModeOrigin::Default;
        }
        self.kube_proxy.choose();
        let invalid = validation::validate(&self.kube_proxy, &self.own);
        match invalid.as_slice() {
            [] => Ok(self),
            [only] => bail!("invalid configuration: {only}"),
            many => {
                let lines: String = many.iter().map(|invalid| format!("\n  {invalid}")).collect();
                bail!("invalid configuration, {} values:{lines}", many.len())
            }
        }
    }

    /// Says what is odd about how it was given.
    pub(crate) fn report(&self) {
        for remark in &self.remarks {
            warn!("{remark}");
        }
        let fields = no_effect::fields(&self.kube_proxy);
        if !fields.is_empty() {
            warn!(fields = fields.join(", "), "configuration fields without effect");
        }
        let gates = feature_gate::remarks(&self.kube_proxy.feature_gates, &self.kube_proxy.mode);
        if let Some(odd) = gates.odd {
            warn!("{odd}");
        }
        if gates.ipvs_is_off {
            warn!(
                "the feature gate KubeProxyIPVS=false is of kube-proxy's IPVS mode, the mode ipvs is served all the same"
            );
        }
        if !gates.without_effect.is_empty() {
            info!(gates = gates.without_effect.join(", "), "feature gates without effect");
        }
    }

    /// Says what is probably not meant, before it is served.
    ///
    /// # Errors
    /// Addresses of the wrong family, where that is known and cannot work.
    pub(crate) fn doubt(&self) -> Result<()> {
        for doubt in doubt::doubts(&self.kube_proxy, ip_family::of_node()) {
            match doubt {
                Doubt::Harmless(reason) => warn!(reason, "the configuration may be incomplete or incorrect"),
                Doubt::Fatal(reason) => bail!("the configuration is incorrect: {reason}"),
            }
        }
        Ok(())
    }

    /// `--write-config-to`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = output::yaml(&self.kube_proxy, &self.own)?;
        fs::write(path, text).with_context(|| format!("write configuration {}", path.display()))?;
        info!(file = %path.display(), "wrote configuration");
        Ok(())
    }

    /// As kube-proxy shows it at `/configz`.
    pub(crate) fn configz(&self) -> Value {
        output::configz(&self.kube_proxy)
    }
}

/// The settings of the log, where flags alone say them.
///
/// # Errors
/// As [`Configuration::load`].
pub(crate) fn logging_of(flags: &Flags<LogFlags>) -> Result<LoggingConfiguration> {
    let kube_proxy = flags.over(&KubeProxyConfiguration::defaults());
    Ok(Configuration::of(kube_proxy).complete()?.kube_proxy.logging)
}

fn set_hostname(kube_proxy: &mut KubeProxyConfiguration, flags: &Flags<ServiceFlags>) -> Result<()> {
    let given = flags.over(&KubeProxyConfiguration::default()).hostname_override;
    if !given.is_empty() {
        kube_proxy.hostname_override = given.trim().to_lowercase();
        ensure!(
            !kube_proxy.hostname_override.is_empty(),
            "empty hostname-override is invalid"
        );
    }
    Ok(())
}

fn with_deprecated_port(address: &str, port: i32) -> String {
    match port {
        // Not served.
        0 => String::new(),
        port => address::with_port(address, port),
    }
}

fn deprecated(args: &ConfigurationArgs) -> impl Iterator<Item = String> {
    let flags = [
        (
            "healthz-port",
            args.healthz_port.is_some(),
            "use --healthz-bind-address",
        ),
        (
            "metrics-port",
            args.metrics_port.is_some(),
            "use --metrics-bind-address",
        ),
        ("boot-id-file", args.boot_id_file.is_some(), "it has no effect"),
        ("machine-id-file", args.machine_id_file.is_some(), "it has no effect"),
        (
            "proxy-port-range",
            args.proxy.names().any(|name| name == "proxy-port-range"),
            "it has no effect",
        ),
    ];
    flags
        .into_iter()
        .filter(|(_, given, _)| *given)
        .map(|(name, _, instead)| format!("--{name} is deprecated: {instead}"))
}

#[cfg(test)]
mod tests;
