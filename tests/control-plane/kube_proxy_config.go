package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	"k8s.io/kube-proxy/config/v1alpha1"
	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	proxyscheme "k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
)

// featureGates prints every feature gate of this release as a JSON object:
// name to stage, default and whether it is locked.
func featureGates(out io.Writer) error {
	type gate struct {
		Stage   string `json:"stage"`
		Default bool   `json:"default"`
		Locked  bool   `json:"locked"`
	}
	gates := map[featuregate.Feature]gate{}
	for name, spec := range utilfeature.DefaultMutableFeatureGate.GetAll() {
		gates[name] = gate{string(spec.PreRelease), spec.Default, spec.LockToDefault}
	}
	return json.NewEncoder(out).Encode(gates)
}

// configz prints the KubeProxyConfiguration of a file as kube-proxy shows it
// at /configz: its public type as JSON, with kind and apiVersion, under the
// group's name.
func configz(file string, out io.Writer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	decoded, _, err := proxyscheme.Codecs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return fmt.Errorf("decode %s: %w", file, err)
	}
	internal, ok := decoded.(*proxyconfig.KubeProxyConfiguration)
	if !ok {
		return fmt.Errorf("decode %s: found a %T", file, decoded)
	}
	public := &v1alpha1.KubeProxyConfiguration{}
	if err := proxyscheme.Scheme.Convert(internal, public, nil); err != nil {
		return fmt.Errorf("convert %s: %w", file, err)
	}
	public.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("KubeProxyConfiguration"))
	return json.NewEncoder(out).Encode(map[string]any{proxyconfig.GroupName: public})
}
