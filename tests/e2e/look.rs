//! A look into a cluster that lives in a guest: the guest has no terminal and no network outside, but the same files.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// Runs what appears in the file `command` of a folder, leaves what it said in `output`; ends where `end` appears.
pub(crate) fn serve(folder: &Path, control_plane: &Path, kubeconfig: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    println!("the cluster stays. From another terminal, in {}:", folder.display());
    println!("  echo 'kubectl get pods -A; ipvsadm -Ln' >next; mv next command; sleep 3; cat output; touch end");
    while !folder.join("end").exists() {
        if let Ok(line) = fs::read_to_string(folder.join("command")) {
            fs::remove_file(folder.join("command"))?;
            let kubectl = format!("kubectl() {{ '{}' kubectl \"$@\"; }}\n", control_plane.display());
            let output = Command::new("sh")
                .args(["-c", &format!("{kubectl}{line}")])
                .env("KUBECONFIG", kubeconfig)
                .output()?;
            fs::write(folder.join("output"), [output.stdout, output.stderr].concat())?;
        }
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}
