// The engine that enforces NetworkPolicies on one node of a test cluster. It decides about the first packet of each
// connection. The rules that hand these packets over are those of src/policies.rs of the test cluster: the ones that the
// library itself writes need a part of nftables that not every kernel has.
package main

import (
	"github.com/spf13/cobra"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func newNetworkPoliciesCommand() *cobra.Command {
	var kubeconfig, node string
	var queue uint16
	command := &cobra.Command{
		Use:          "network-policies",
		Short:        "Enforce the network policies of a node's pods",
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
			factory := informers.NewSharedInformerFactory(client, 0)
			engine, err := networkpolicy.NewController(
				client,
				factory.Networking().V1().NetworkPolicies(),
				factory.Core().V1().Namespaces(),
				factory.Core().V1().Pods(),
				// Nodes and three more are for the policies of administrators, which need resources of their own.
				nil, nil, nil, nil,
				networkpolicy.Config{QueueID: int(queue), NodeName: node},
			)
			if err != nil {
				return err
			}
			ctx := command.Context()
			factory.Start(ctx.Done())
			return engine.Run(ctx)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the cluster")
	command.Flags().StringVar(&node, "node", "", "name of the node")
	command.Flags().Uint16Var(&queue, "queue", 0, "number of the kernel's queue that holds the packets")
	for _, name := range []string{"kubeconfig", "node", "queue"} {
		if err := command.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return command
}
