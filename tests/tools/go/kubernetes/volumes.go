// The default StorageClass of a test cluster: a provisioner that makes a directory for a claim on the
// node that the scheduler chose, and removes it with the volume. Every node of a test cluster lives on
// this machine, so one process can do it for all of them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const provisionerName = "leasehold.test/local"

type localVolumes struct {
	// root holds one directory a node, and under it one a volume.
	root string
}

func (l *localVolumes) Provision(_ context.Context, options controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC
	if options.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, errors.New("no node selected: the StorageClass must bind on first use")
	}
	if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == v1.PersistentVolumeBlock {
		return nil, controller.ProvisioningFinished, errors.New("block volumes are not served: ask for volumeMode Filesystem")
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode == v1.ReadOnlyMany || mode == v1.ReadWriteMany {
			return nil, controller.ProvisioningFinished, fmt.Errorf("access mode %s is not served: a local volume lives on one node", mode)
		}
	}
	node := options.SelectedNodeName
	directory := filepath.Join(l.root, node, options.PVName)
	if err := os.MkdirAll(directory, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	// MkdirAll obeys the umask; a workload that isn't root must be able to write.
	if err := os.Chmod(directory, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			MountOptions:                  options.StorageClass.MountOptions,
			VolumeMode:                    claim.Spec.VolumeMode,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: claim.Spec.Resources.Requests[v1.ResourceStorage]},
			// local, not hostPath: the kubelet applies a pod's fsGroup to it.
			PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: directory}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}, controller.ProvisioningFinished, nil
}

func (l *localVolumes) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	if volume.Spec.Local == nil {
		return fmt.Errorf("volume %s is not a local one", volume.Name)
	}
	directory := filepath.Clean(volume.Spec.Local.Path)
	// A volume's name is its directory's name: an edited path must not delete anything else.
	if match, err := filepath.Match(filepath.Join(l.root, "*", volume.Name), directory); err != nil || !match {
		return fmt.Errorf("volume %s points at %s, outside of %s: not deleted", volume.Name, directory, l.root)
	}
	return os.RemoveAll(directory)
}

func newLocalVolumesCommand() *cobra.Command {
	var kubeconfig, root string
	command := &cobra.Command{
		Use:          "local-volumes",
		Short:        "Provision directories of this machine as volumes of a test cluster",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			absolute, err := filepath.Abs(root)
			if err != nil {
				return err
			}
			ctx := command.Context()
			controller.NewProvisionController(ctx, client, provisionerName, &localVolumes{root: absolute},
				controller.LeaderElection(false)).Run(ctx)
			return nil
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the cluster")
	command.Flags().StringVar(&root, "root", "", "where volumes are made: ROOT/NODE/VOLUME")
	for _, name := range []string{"kubeconfig", "root"} {
		if err := command.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return command
}
